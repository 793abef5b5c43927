"""The finals: trials only choose who is trained whole; the mean on the selection split names the
winner.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycd.errors import RunError
from raycd.evaluate import Metric
from tune.finals import compare, finalists, finals
from tune.journal import Journal, Record
from tune.space import Space
from tune.trial import evaluated

Mined = Any


def trial(number: int, value: float | None, **settings: Any) -> Record:
    return {
        "number": number,
        "value": value,
        "settings": settings,
        "error": None if value else "KeyError: 'x'",
    }


def of(space: Space, number: int, value: float | None, k: int, alpha: float) -> Record:
    return trial(number, value, **{"mine.alpha": alpha, "stage2.k": k})


@pytest.fixture
def space(small_space: Callable[..., Space]) -> Space:
    return small_space(finalists=2)


@pytest.fixture
def journal(space: Space, mined: Mined) -> Journal:
    return Journal(f"{space.config.runs}/sweep", mined.run.root)


@pytest.mark.slow
def test_finalists_are_the_best_of_different_settings_beside_the_default(
    space: Space, journal: Journal
) -> None:
    default = trial(0, 0.9, **space.default())
    trials = [
        default,
        of(space, 1, 0.5, 2, 0.3),
        of(space, 2, None, 2, 0.4),
        of(space, 3, 0.7, 3, 0.3),
        of(space, 4, 0.7, 3, 0.3),  # the same settings again
        of(space, 5, 0.6, 4, 0.3),
    ]
    assert [found["number"] for found in finalists(space, trials, journal)] == [3, 5]


def test_no_finals_without_a_trial(space: Space, journal: Journal) -> None:
    with pytest.raises(RunError, match="all 1 trials have failed\n  got:      KeyError: 'x'"):
        finalists(space, [of(space, 0, None, 2, 0.3)], journal)


@pytest.mark.slow
def test_the_winner_is_the_best_mean_of_whole_trainings_and_the_default_is_among_them(
    mined: Mined, space: Space, journal: Journal, metric: Metric
) -> None:
    trials = [of(space, 4, 0.99, 2, 0.3), of(space, 7, 0.98, 3, 0.5)]
    found = finals(mined.tables, space, trials, metric, journal)
    assert sorted(finalist.name for finalist in found) == ["default", "trial 4", "trial 7"]
    assert [finalist.value for finalist in found] == sorted(
        (finalist.value for finalist in found), reverse=True
    )
    for finalist in found:
        alone = [
            evaluated(
                mined.tables,
                space.configured(finalist.settings).model_copy(update={"seed": seed}),
                metric,
                "selection",
            )
            for seed in (0, 1)
        ]
        assert finalist.value == pytest.approx(statistics.fmean(one["selection"] for one in alone))
        assert all(one["selection"] == pytest.approx(metric.of(one["recalls"])) for one in alone)


@pytest.mark.slow
def test_a_finalist_that_cannot_be_trained_whole_is_left_out_and_the_others_go_on(
    mined: Mined, small_space: Callable[..., Space], metric: Metric
) -> None:
    space = small_space("stage2.lr=0.001,1e30", finalists=2)
    journal = Journal(f"{space.config.runs}/sweep", mined.run.root)
    explodes = {**of(space, 4, 0.99, 2, 0.3)["settings"], "stage2.lr": 1e30}
    found = finals(mined.tables, space, [trial(4, 0.99, **explodes)], metric, journal)
    assert [finalist.name for finalist in found] == ["default"]
    assert not journal.run.exists("finals/trial-4-0.json")
    with pytest.raises(RunError, match="could not be compared on val"):
        compare(mined.tables, space, explodes, metric, journal)


@pytest.mark.slow
def test_the_default_wins_where_nothing_else_is_better_and_what_is_kept_is_not_trained_again(
    mined: Mined, space: Space, journal: Journal, metric: Metric
) -> None:
    settings = of(space, 4, 0.99, 2, 0.3)["settings"]
    for name, kept in (("default", space.default()), ("trial-4", settings)):
        for seed in (0, 1):
            note = {"settings": kept, "seed": seed, "selection": 0.125}
            journal.run.write_json(f"finals/{name}-{seed}.json", note)
    files = {path: path.read_bytes() for path in (Path(journal.run.root) / "finals").iterdir()}
    found = finals(mined.tables, space, [trial(4, 0.99, **settings)], metric, journal)
    assert [(finalist.name, finalist.value) for finalist in found] == [
        ("default", 0.125),
        ("trial 4", 0.125),
    ]
    assert {
        path: path.read_bytes() for path in (Path(journal.run.root) / "finals").iterdir()
    } == files

    changed = trial(4, 0.99, **{**settings, "stage2.k": 3})
    finals(mined.tables, space, [changed], metric, journal)
    assert (
        json.loads((Path(journal.run.root) / "finals" / "trial-4-0.json").read_text())["settings"][
            "stage2.k"
        ]
        == 3
    )
