"""Ranges by dotted name: their defaults, the user's overrides, and every mistake in one."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pytest

from raycd.config import Config
from tune import outcome
from tune.space import Choice, Range, Space, make_space

CONFIG = Config.model_validate(
    {"mine": {"floor": 0.8, "eps_low": 0.9, "eps_high": 0.98, "s_max": 4, "alpha": 0.6}}
)
WIDE = ["mine.eps_low=0.8,1", "mine.eps_high=0.8,1"]


def changed(**sections: dict[str, Any]) -> Config:
    tree = CONFIG.model_dump()
    for name, fields in sections.items():
        tree[name] |= fields
    return Config.model_validate(tree)


AUGMENTATION = {
    "mine.eps_low": Range(0.8, 0.9),
    "mine.eps_high": Range(0.9, 1.0),
    "mine.s_max": Range(1, 8, whole=True),
    "mine.alpha": Range(0.4, 0.7),
    "stage2.k": Range(1, 6, whole=True),
}


def test_the_default_space_is_the_augmentation_and_the_dropout_of_a_head_that_has_one() -> None:
    with_dropout = {**AUGMENTATION, "stage2.dropout": Range(0.0, 0.7)}
    for head in ("clip_cd", "combiner", "composeae"):
        assert make_space(changed(stage2={"head": head}), []).ranges == with_dropout
    for head in ("tirg", "dcnet"):
        assert make_space(changed(stage2={"head": head}), []).ranges == AUGMENTATION
    assert make_space(changed(stage2={"head": "tirg"}), ["stage2.dropout"]).ranges == with_dropout


def test_the_default_space_heeds_what_was_mined() -> None:
    space = make_space(changed(mine={"neighbours": 5, "floor": 0.5, "alpha": 0.95}), [])
    assert space.ranges["mine.s_max"] == Range(1, 5, whole=True)
    assert space.ranges["mine.eps_low"] == Range(0.5, 0.75)
    assert space.ranges["mine.alpha"] == Range(0.75, 1.0)


@pytest.mark.parametrize(
    ("override", "name", "given"),
    [
        ("mine.alpha=0.5,0.9", "mine.alpha", Range(0.5, 0.9)),
        ("stage2.k=2,9", "stage2.k", Range(2, 9, whole=True)),
        ("mine.s_max=1,64,log", "mine.s_max", Range(1, 64, whole=True, log=True)),
        ("stage2.lr=1e-5,1e-3,log", "stage2.lr", Range(1e-5, 1e-3, log=True)),
        ("stage2.lr=1e-5|1e-3", "stage2.lr", Choice((1e-5, 1e-3))),
        ("stage2.k=1|3|5", "stage2.k", Choice((1, 3, 5))),
        ("stage2.decay=none|cosine", "stage2.decay", Choice(("none", "cosine"))),
        ("stage2.dropout", "stage2.dropout", Range(0.0, 0.7)),
        ("stage2.bilinear_dim", "stage2.bilinear_dim", Range(8, 128, whole=True, log=True)),
        ("mine.alpha", "mine.alpha", Range(0.4, 0.7)),
    ],
)
def test_an_override_sets_a_range_by_its_dotted_name(
    override: str, name: str, given: Range | Choice
) -> None:
    found = make_space(CONFIG, [override]).ranges[name]
    assert found == given
    assert [type(value) for value in found.ends()] == [type(value) for value in given.ends()]


def test_the_learning_rate_is_searched_around_the_configured_one() -> None:
    found = make_space(CONFIG, ["stage2.lr"]).ranges["stage2.lr"]
    assert found.ends() == pytest.approx([4e-6, 1e-4])
    assert str(found) == "4e-06 to 0.0001, logarithmic"


def test_none_takes_a_setting_out_and_it_stays_as_configured() -> None:
    out = ("mine.eps_low", "mine.s_max", "stage2.k", "stage2.dropout")
    space = make_space(CONFIG, [f"{name}=none" for name in out])
    assert list(space.ranges) == ["mine.eps_high", "mine.alpha"]
    configured = space.configured(space.settings({"mine.eps_high": 0.97, "mine.alpha": 0.5}))
    assert (configured.mine.eps_low, configured.mine.eps_high, configured.mine.alpha) == (
        0.9,
        0.97,
        0.5,
    )


def test_the_last_override_of_a_name_wins() -> None:
    assert make_space(CONFIG, ["stage2.k=none", "stage2.k=1,3"]).ranges["stage2.k"] == Range(
        1, 3, whole=True
    )


def test_k_stays_below_the_feature_size() -> None:
    space = make_space(CONFIG, ["stage2.bilinear_dim"], dim=80)
    assert space.ranges["stage2.bilinear_dim"] == Range(8, 79, whole=True, log=True)


def test_a_person_reads_the_ranges() -> None:
    space = make_space(
        CONFIG, ["stage2.lr=1e-5,1e-3,log", "stage2.decay=none|cosine", *(["mine.s_max=none"])]
    )
    assert space.to_dict() == {
        "mine.eps_low": "0.8 to 0.9",
        "mine.eps_high": "0.9 to 1",
        "mine.alpha": "0.4 to 0.7",
        "stage2.k": "1 to 6",
        "stage2.dropout": "0 to 0.7",
        "stage2.lr": "1e-05 to 0.001, logarithmic",
        "stage2.decay": "none | cosine",
    }


def test_the_default_is_what_is_configured() -> None:
    assert make_space(CONFIG, ["stage2.lr"]).default() == {
        "mine.eps_low": 0.9,
        "mine.eps_high": 0.98,
        "mine.s_max": 4,
        "mine.alpha": 0.6,
        "stage2.k": 5,
        "stage2.dropout": 0.5,
        "stage2.lr": 2e-5,
    }


@pytest.mark.parametrize(
    "overrides",
    [
        WIDE,
        ["mine.eps_low=0.8,1", "mine.eps_high=none"],
        ["mine.eps_low=none", "mine.eps_high=0.85,1"],
    ],
    ids=["both", "eps_low alone", "eps_high alone"],
)
def test_eps_low_lies_below_eps_high_whatever_is_proposed(overrides: list[str]) -> None:
    space = make_space(CONFIG, overrides)
    names = [name for name in ("mine.eps_low", "mine.eps_high") if name in space.ranges]
    ends = [space.ranges[name].ends() for name in names]
    rng = np.random.default_rng(0)
    proposals = [
        dict(zip(names, rng.uniform(*zip(*ends, strict=True)).tolist(), strict=True))
        for _ in range(3000)
    ]
    proposals += [
        dict.fromkeys(names, value)
        for value in (0.85, 0.8999999, 0.9, 0.98, 0.9995, 0.9999999, 1.0)
    ]
    for proposed in proposals:
        mine = space.configured(space.settings(proposed)).mine
        assert 0.8 <= mine.eps_low < mine.eps_high <= 1.0


@pytest.mark.parametrize(
    ("proposed", "settings"),
    [
        ((0.85, 0.95), (0.85, 0.95)),
        ((0.95, 0.85), (0.95, 0.951)),
        ((1.0, 0.9), (0.999, 1.0)),
        ((0.9, 0.9), (0.9, 0.901)),
    ],
)
def test_a_proposal_with_eps_low_too_high_moves_eps_high_up(
    proposed: tuple[float, float], settings: tuple[float, float]
) -> None:
    found = make_space(CONFIG, WIDE).settings(
        {"mine.eps_low": proposed[0], "mine.eps_high": proposed[1]}
    )
    assert (found["mine.eps_low"], found["mine.eps_high"]) == settings


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("0.85,0.99", "0.86,0.93"),
        ("0.9,0.95", "0.8,0.99"),
        ("0.9,0.9004", "0.85,0.9003"),
        ("0.81|0.9|0.97", "0.85|0.93"),
        ("0.85,0.99", "0.86|0.93"),
        ("0.81|0.9|0.97", "0.85,0.93"),
        ("0.8123456,0.95", "0.8123456,0.9456789"),
    ],
)
def test_eps_low_and_eps_high_stay_in_their_ranges(low: str, high: str) -> None:
    space = make_space(CONFIG, [f"mine.eps_low={low}", f"mine.eps_high={high}"])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    distributions = {name: given.distribution() for name, given in space.ranges.items()}
    crossed = 0
    for _ in range(300):
        proposed = study.ask(distributions).params
        settings = space.settings(proposed)
        crossed += proposed["mine.eps_low"] >= proposed["mine.eps_high"]
        assert space.holds(settings), settings
        assert settings["mine.eps_low"] < settings["mine.eps_high"]
        same = {name: value for name, value in settings.items() if "eps" not in name}
        assert same == pytest.approx({name: proposed[name] for name in same}, rel=1e-5)
    assert crossed > 10


def test_figures_show_every_trial_that_was_measured() -> None:
    space = make_space(CONFIG, ["mine.eps_low=0.85,0.99", "mine.eps_high=0.86,0.93"])
    proposals = [
        space.default() | {"mine.eps_low": low, "mine.eps_high": 0.9}
        for low in (0.86, 0.9, 0.93, 0.98)
    ]
    trials = [{"value": 0.1, "settings": space.settings(proposed)} for proposed in proposals]
    drawn = outcome._study(space, trials).trials
    assert [trial.value for trial in drawn] == [0.1] * 4
    assert [trial.params for trial in drawn] == [trial["settings"] for trial in trials]


def test_parallel_coordinates_have_a_title_and_the_scale_of_their_colours() -> None:
    space = make_space(CONFIG, [])
    trials = [
        {"value": value, "settings": space.settings(space.default())} for value in (0.3, 0.1, 0.2)
    ]
    with plt.rc_context({"backend": "Agg"}):
        axes = outcome._parallel(outcome._study(space, trials), "recall@10")
    scale = axes.figure.axes[1]
    assert axes.get_title()
    assert (scale.get_ylabel(), scale.get_ylim()) == ("recall@10", (0.1, 0.3))
    plt.close(axes.figure)


def test_settings_have_six_digits() -> None:
    space = make_space(CONFIG, ["stage2.lr"])
    proposed = {"mine.alpha": 0.612345678, "stage2.lr": 1.23456789e-5, "stage2.k": 3}
    assert space.settings(proposed) == {
        "mine.alpha": 0.612346,
        "stage2.lr": 1.23457e-5,
        "stage2.k": 3,
    }


def test_a_grid_is_every_combination_of_evenly_spread_values() -> None:
    space = Space(
        CONFIG,
        {
            "stage2.lr": Range(1e-5, 1e-3, log=True),
            "stage2.k": Range(1, 6, whole=True),
            "stage2.decay": Choice(("none", "cosine")),
        },
    )
    points = space.grid(3)
    assert len(points) == 3 * 3 * 2
    assert {point["stage2.lr"] for point in points} == {1e-5, 1e-4, 1e-3}
    assert {point["stage2.k"] for point in points} == {1, 4, 6}
    assert points[0] == {"stage2.lr": 1e-5, "stage2.k": 1, "stage2.decay": "none"}


def test_a_grid_has_the_ends_of_a_range_of_small_numbers() -> None:
    assert Range(2e-7, 5e-6, log=True).grid(3) == [2e-7, 1e-6, 5e-6]


def test_a_grid_of_few_whole_numbers_names_none_twice() -> None:
    assert Range(1, 2, whole=True).grid(5) == [1, 2]
