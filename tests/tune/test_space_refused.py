"""Ranges that make no space of settings, and what is said of them."""

from __future__ import annotations

import pytest

from raycd.config import Config
from raycd.errors import ConfigError
from tests.tune.test_space import CONFIG
from tune.space import make_space


def refused(*overrides: str, config: Config = CONFIG, dim: int | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        make_space(config, overrides, dim=dim)
    return str(caught.value)


@pytest.mark.parametrize("text", ["0.7,0.7", "0.9,0.5"])
def test_an_empty_range(text: str) -> None:
    assert refused(f"mine.alpha={text}") == (
        f"the range of mine.alpha is empty\n  got:      {text}\n  expected: LOW less than HIGH\n"
        "  to do:    give --space mine.alpha=LOW,HIGH, or set --mine.alpha for the whole sweep"
    )


def test_a_logarithmic_range_from_zero() -> None:
    message = refused("stage2.lr=0,0.1,log")
    assert "the range of stage2.lr is empty" in message
    assert "expected: LOW less than HIGH, both greater than 0" in message


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    assert refused("mine.alhpa=0.5,0.9") == (
        "unknown setting\n  got:      mine.alhpa (--space)\n  expected: did you mean mine.alpha?"
    )


def test_a_section_is_no_setting() -> None:
    assert refused("mine=1,2").startswith("unknown setting\n  got:      mine (--space)")


@pytest.mark.parametrize(
    "name",
    [
        *(
            "mine.floor",
            "mine.neighbours",
            "mine.pool",
            "mine.batch_size",
            "mine.worker_mib",
            "mine.index",
        ),
        *("mine.recall_sample", "mine.hnsw_m", "mine.hnsw_ef", "mine.ivf_lists", "mine.ivf_probes"),
        *("stage2.epochs", "stage2.precision"),
        *(
            "stage2.select_on",
            "stage2.pseudo",
            "stage1.lr",
            "seed",
            "data.selection_fraction",
            "tune.samples",
            "runs",
        ),
    ],
)
def test_a_setting_that_a_trial_cannot_change(name: str) -> None:
    message = refused(f"{name}=1,2")
    assert message.startswith(
        f"a trial cannot change this setting\n  got:      {name}\n  expected: a setting"
    )
    assert f"set --{name} for the whole sweep" in message


@pytest.mark.parametrize(
    "text",
    [
        "a,b",
        "0.5",
        "0.5,0.6,0.7",
        "0.5,0.9,linear",
        "0.5,",
        ",",
        "nan,1",
        "0,inf",
        "log",
        "0.5;0.9",
    ],
)
def test_an_unreadable_range(text: str) -> None:
    assert refused(f"mine.alpha={text}") == (
        f"the range of mine.alpha cannot be read\n  got:      {text}\n"
        "  expected: LOW,HIGH or LOW,HIGH,log or A|B|C or none"
    )


@pytest.mark.parametrize(
    "override", ["stage2.decay=none|[cosine", "stage2.head=clip_cd|{a: b}", "mine.alpha=0.5|"]
)
def test_an_unreadable_choice(override: str) -> None:
    name, _, text = override.partition("=")
    assert refused(override).startswith(f"the range of {name} cannot be read\n  got:      {text}\n")


@pytest.mark.parametrize("override", ["stage2.k=1.5,3", "mine.s_max=1,2.5"])
def test_a_range_of_whole_numbers_has_whole_ends(override: str) -> None:
    name, _, text = override.partition("=")
    message = refused(override)
    assert message.startswith(f"the range of {name} cannot be read\n  got:      {text}\n")
    assert "whole numbers" in message


@pytest.mark.parametrize("name", ["stage2.head", "stage2.decay"])
def test_a_setting_that_is_no_number_has_choices_alone(name: str) -> None:
    message = refused(f"{name}=0,1")
    assert message.startswith(f"the range of {name} cannot be read\n  got:      0,1\n")
    assert "A|B|C" in message


@pytest.mark.parametrize("head", ["sum", "lincir", "cosmo"])
def test_heads_that_trials_cannot_train_are_refused(head: str) -> None:
    message = refused(f"stage2.head=clip_cd|{head}")
    assert message.startswith("the space holds a head that trials cannot train")
    assert f"got:      stage2.head {head}\n" in message


def test_a_name_without_a_range_of_its_own() -> None:
    assert refused("stage2.logit_scale") == (
        "the space has no range for stage2.logit_scale\n  got:      stage2.logit_scale\n"
        "  expected: stage2.logit_scale=LOW,HIGH\n  to do:    give the range"
    )


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("mine.s_max=1,65", ["mine.s_max 65 is greater than mine.neighbours 64"]),
        ("mine.s_max=0,4", ["mine.s_max: impossible value", "got:      0"]),
        ("mine.eps_low=0.7,0.9", ["mine.eps_low 0.7 is below mine.floor 0.8"]),
        ("mine.alpha=0.5,1.5", ["mine.alpha: impossible value", "got:      1.5"]),
        ("stage2.dropout=0,1", ["stage2.dropout: impossible value", "got:      1.0"]),
        ("stage2.decay=none|linear", ["stage2.decay: impossible value", "got:      'linear'"]),
        ("stage2.k=1|many", ["stage2.k: impossible value", "got:      'many'"]),
    ],
)
def test_a_value_that_the_configuration_refuses(override: str, parts: list[str]) -> None:
    message = refused(override)
    assert message.startswith(
        f"the space holds an impossible value of {override.partition('=')[0]}: "
    )
    assert all(part in message for part in parts), message


def test_k_as_large_as_the_features() -> None:
    assert refused("stage2.bilinear_dim=8,128", dim=128) == (
        "the space holds an impossible value of stage2.bilinear_dim (K)\n  got:      128\n"
        "  expected: at most 127: less than the feature size"
    )
    assert make_space(CONFIG, ["stage2.bilinear_dim=8,127"], dim=128).ranges[
        "stage2.bilinear_dim"
    ].ends() == [8, 127]


def test_no_eps_low_below_any_eps_high() -> None:
    message = refused("mine.eps_low=0.95,0.99", "mine.eps_high=0.9,0.95")
    assert message.startswith("the space allows no eps_low below an eps_high\n")
    assert "got:      mine.eps_low from 0.95, mine.eps_high to 0.95" in message


def test_all_ranges_removed() -> None:
    names = make_space(CONFIG, []).ranges
    assert refused(*(f"{name}=none" for name in names)) == (
        "the space is empty\n  got:      every range taken out\n  expected: at least one\n"
        "  to do:    leave at least one setting in it"
    )
