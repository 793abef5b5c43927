"""`--choose`: which rows choose a value, by what, and what a mistake says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.comparison import heads
from jobs.comparison.cells import Cell, Record
from jobs.comparison.choice import Choice, make_choice
from jobs.comparison.plan import Plan, make_plan
from raycd.config import Config
from raycd.errors import ConfigError
from tests.jobs.test_compare_cells import INPUTS, Comparison, tables
from tune.trial import Tables

__all__ = ["tables"]

HEADS, OWN = "combiner,clip_cd,tirg", ["clip_cd.stage2.dropout=0.3"]


def asked(text: str, variants: str = "original,pseudo", **stage2: Any) -> Any:
    config = Config.model_validate({"stage2": stage2})
    plan = make_plan(config, heads=HEADS, settings=OWN, variants=variants, seeds=2)
    return make_choice(text, config, plan), plan


def test_rows_with_dropout_and_none_of_their_own_choose_it() -> None:
    choice, plan = asked("stage2.dropout=0,0.2,0.5")
    chooses = {entry.name: [own.settings for own in of] for entry, of in choice.entries(plan)}
    assert chooses == {"combiner": [{"stage2.dropout": value} for value in (0, 0.2, 0.5)]}


def test_another_setting_is_chosen_by_all_rows_beside_what_they_have() -> None:
    choice, plan = asked("stage2.lr=1e-3,1.0e-4")
    chooses = {entry.name: [own.settings for own in of] for entry, of in choice.entries(plan)}
    assert list(chooses) == ["combiner", "clip_cd", "tirg"]
    assert chooses["clip_cd"][1] == {"stage2.dropout": 0.3, "stage2.lr": 1e-4}


def test_nothing_is_chosen_where_nothing_is_asked() -> None:
    assert asked("")[0] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stage2.dropout", "--choose cannot be read\n  got:      stage2.dropout\n"),
        ("stage2.dropout=0.5", "--choose cannot be read\n"),
        ("stage2.dropout=0,[", "--choose cannot be read\n"),
        ("stage2.drop=0,1", "unknown setting\n  got:      stage2.drop"),
        ("stage2.epochs=3,4", "a row cannot have this setting of its own"),
        ("stage1.lr=1,2", "a row cannot have this setting of its own"),
        ("stage2.dropout=0,2", "stage2.dropout: impossible value"),
        ("mine.alpha=0,2", "mine.alpha: impossible value"),
    ],
)
def test_a_mistake_is_one_message(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        asked(text)
    assert str(caught.value).startswith(message)


def test_values_are_checked_beside_what_a_row_has() -> None:
    def asked_beside(own: str, text: str) -> Choice | None:
        config = Config()
        plan = make_plan(
            config, heads="combiner", settings=[own], variants="original,pseudo", seeds=1
        )
        return make_choice(text, config, plan)

    with pytest.raises(ConfigError, match=r"\(--choose combiner\)"):
        asked_beside("combiner.stage2.lr=1", "stage2.dropout=0,2")
    with pytest.raises(ConfigError, match=r"eps_low 0\.95 is greater than mine\.eps_high 0\.92"):
        asked_beside("combiner.mine.eps_high=0.92", "mine.eps_low=0.85,0.95")
    assert asked_beside("combiner.mine.eps_low=0.82", "mine.eps_high=0.85,0.95")


def test_a_choice_that_no_row_has_is_refused() -> None:
    config = Config()
    plan = make_plan(config, heads="tirg", settings=[], variants="original", seeds=1)
    choice = make_choice("stage2.dropout=0,0.5", config, plan)
    assert choice is not None
    with pytest.raises(ConfigError, match="no row has anything to choose"):
        choice.check(plan)


def test_a_setting_of_pseudo_triplets_is_chosen_by_trainings_that_have_some() -> None:
    assert asked("stage2.dropout=0,0.5")[0].variant == "original"
    for text in ("mine.alpha=0.3,0.6", "stage2.k=1,5"):
        assert asked(text)[0].variant == "pseudo"
        with pytest.raises(ConfigError, match="a setting of pseudo triplets, and no row has any"):
            asked(text, "original")


def test_a_value_is_not_chosen_on_the_split_that_compares() -> None:
    with pytest.raises(ConfigError, match=r"no split to choose on\n  got: .*select_on val"):
        asked("stage2.dropout=0,0.5", select_on="val")


def asked_of(comparison: Comparison, text: str) -> Choice:
    choice = make_choice(text, comparison.config, comparison.plan)
    assert choice is not None
    return choice


def chosen(
    comparison: Comparison,
    tables: Tables,
    text: str,
    *,
    failing: int | None = None,
) -> tuple[Plan, dict[str, Record], Choice]:
    """Return the plan that chose, the results by which it did, and the choice.

    Trainings of the bilinear size `failing` are lost.
    """
    config, choice = comparison.config, asked_of(comparison, text)
    found: dict[str, Record] = {}

    def train(cells: Sequence[Cell]) -> dict[str, Record]:
        comparison.todo = list(cells)
        found.update(comparison.train())
        lost = [cell.path for cell in cells if cell.config.stage2.bilinear_dim == failing]
        return found | {path: {"error": "lost"} for path in lost}

    trainings = heads.tried(config, comparison.plan.seeds, choice.variant, tables, INPUTS)
    return choice.made(config, comparison.plan, trainings, train), found, choice


def test_each_row_has_the_value_of_the_greatest_mean_on_selection(
    tmp_path: Path, tables: Tables
) -> None:
    comparison, scores = (
        Comparison(tmp_path, tables),
        {
            ("combiner", 0.01): (0.5, 0.2),
            ("combiner", 0.1): (0.4, 0.4),  # the best mean, and in no seed the best
            ("combiner", 0.2): (0.3, 0.45),
            ("clip_cd", 0.01): (0.7, 0.7),
            ("clip_cd", 0.1): (0.7, 0.7),
            ("clip_cd", 0.2): (0.1, 0.9),
        },
    )

    def train(cells: Sequence[Cell]) -> dict[str, Record]:
        settings = [(cell, cell.config.stage2) for cell in cells]
        return {
            cell.path: {"selection": scores[own.head, own.lr][cell.config.seed]}
            for cell, own in settings
        }

    config, choice = comparison.config, asked_of(comparison, "stage2.lr=0.01,0.1,0.2")
    trainings = heads.tried(config, comparison.plan.seeds, choice.variant, tables, INPUTS)
    plan = choice.made(config, comparison.plan, trainings, train)
    assert [entry.settings for entry in plan.entries] == [{"stage2.lr": 0.1}, {"stage2.lr": 0.01}]
    assert plan.notes == [
        "stage2.lr, chosen on selection of 0.01, 0.1, 0.2, without pseudo triplets, at 2 epochs: "
        "combiner 0.1, clip_cd 0.01."
    ]


def test_the_trainings_by_which_a_row_chooses_are_those_of_its_table(
    ray_cluster: None, tmp_path: Path, tables: Tables
) -> None:
    comparison = Comparison(tmp_path, tables)
    plan, found, _ = chosen(comparison, tables, "stage2.lr=1.0e-12,0.1")
    assert len(found) == 8
    assert all(record["selection"] is not None for record in found.values())
    wanted, _ = heads.cells_of(comparison.config, plan, tables, INPUTS)
    of_epochs = [row for row in wanted if (row.form, row.variant) == ("epochs", "original")]
    assert all(set(row.paths.values()) <= set(found) for row in of_epochs)


def test_a_value_whose_training_failed_is_not_chosen_and_of_equal_ones_the_first(
    ray_cluster: None,
    tmp_path: Path,
    tables: Tables,
) -> None:
    small = {"heads": "combiner", "seeds": 1}
    # Nothing of the Combiner depends on this setting
    text = "stage2.bilinear_dim=2,3,4"
    plan, _, _ = chosen(Comparison(tmp_path, tables, **small), tables, text)
    assert plan.entries[0].settings == {"stage2.bilinear_dim": 2}
    plan, _, _ = chosen(Comparison(tmp_path, tables, **small), tables, text, failing=2)
    assert plan.entries[0].settings == {"stage2.bilinear_dim": 3}
