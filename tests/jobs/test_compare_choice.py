"""`--choose`: which rows choose a value, by what, and what a mistake says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
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


def test_a_setting_of_pseudo_triplets_is_chosen_by_trainings_that_have_some() -> None:
    assert asked("stage2.dropout=0,0.5")[0].variant == "original"
    for text in ("mine.alpha=0.3,0.6", "stage2.k=1,5"):
        assert asked(text)[0].variant == "pseudo"
        with pytest.raises(ConfigError, match="a setting of pseudo triplets, and no row has any"):
            asked(text, "original")


def test_a_value_is_not_chosen_on_the_split_that_compares() -> None:
    with pytest.raises(ConfigError, match=r"no split to choose on\n  got: .*select_on val"):
        asked("stage2.dropout=0,0.5", select_on="val")


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
    config = comparison.config
    choice = make_choice(text, config, comparison.plan)
    assert choice is not None
    found: dict[str, Record] = {}

    def train(cells: Sequence[Cell]) -> dict[str, Record]:
        comparison.todo = list(cells)
        found.update(comparison.train())
        lost = [cell.path for cell in cells if cell.config.stage2.bilinear_dim == failing]
        return found | {path: {"error": "lost"} for path in lost}

    trainings = heads.tried(config, comparison.plan.seeds, choice.variant, tables, INPUTS)
    return choice.made(config, comparison.plan, trainings, train), found, choice


def test_each_row_has_the_value_of_the_greatest_mean_on_selection(
    ray_cluster: None,
    tmp_path: Path,
    tables: Tables,
) -> None:
    comparison = Comparison(tmp_path, tables)
    plan, found, choice = chosen(comparison, tables, "stage2.lr=1.0e-12,0.1")
    means: dict[tuple[str, float], list[float]] = {}
    for record in found.values():
        key = (record["head"], record["settings"]["stage2.lr"])
        means.setdefault(key, []).append(record["selection"])
    assert {len(own) for own in means.values()} == {2}
    for entry in plan.entries:
        best = max(choice.values, key=lambda value: fmean(means[entry.head, value]))
        assert entry.settings == {"stage2.lr": best}
    lr = {entry.name: entry.settings["stage2.lr"] for entry in plan.entries}
    assert plan.notes == [
        "stage2.lr, chosen on selection of 1e-12, 0.1, without pseudo triplets, at 2 epochs: "
        f"combiner {lr['combiner']}, clip_cd {lr['clip_cd']}."
    ]
    # The trainings by which a row chose are those of its table
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
