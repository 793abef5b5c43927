"""Trials on Ray: each is kept when it ends, whatever ends it, and none reads an image or val."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raycd.config import Config, MineConfig
from raycd.evaluate import Metric
from raycd.run import Run
from raycd.runtime.stages.context import Context
from tune import trial
from tune.journal import Journal, Record
from tune.runner import run_trials
from tune.search import Budget, make_budget
from tune.space import Space
from tune.trial import Tables

pytestmark = pytest.mark.usefixtures("ray_cluster")

KEPT = [
    "number",
    "proposed",
    "settings",
    "status",
    "value",
    "epochs",
    "started",
    "seconds",
    "error",
    "images_cut_short",
]
EPOCH = ["seen", "epoch", "kind", "loss", "lr", "selection", "score", "seconds"]
Mined = Any


def journal(space: Space, mined: Mined) -> Journal:
    return Journal(f"{space.config.runs}/tiny-sweep", mined.run.root)


def budget(mined: Mined, space: Space) -> Budget:
    return make_budget(space.config, *mined.tables.counts(space.config))


def sweep(
    mined: Mined, space: Space, ended: Callable[[Record], None] = lambda record: None
) -> list[Record]:
    return run_trials(
        mined.tables, space, Metric(), journal(space, mined), budget(mined, space), ended
    )


def files(space: Space) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in Path(space.config.runs, "tiny-sweep", "trials").iterdir()
    }


@pytest.mark.slow
def test_every_trial_is_kept_once_with_its_epochs_and_a_later_start_runs_only_the_rest(
    mined: Mined, small_space: Callable[..., Space]
) -> None:
    space, seen = small_space(samples=3, scheduler="none"), []
    trials = sweep(mined, space, lambda record: seen.append((record["number"], dict(files(space)))))
    assert [record["number"] for record in trials] == [0, 1, 2]
    assert sorted(number for number, _ in seen) == [0, 1, 2]
    assert all(
        f"{number:05d}.json" in there for number, there in seen
    )  # kept before anybody is told
    for record in trials:
        assert list(record) == KEPT
        assert (record["status"], record["error"]) == ("finished", None)
        assert [list(epoch) for epoch in record["epochs"]] == [EPOCH] * len(record["epochs"])
        assert [epoch["epoch"] for epoch in record["epochs"]] == list(range(len(record["epochs"])))
        assert record["value"] == max(epoch["selection"] for epoch in record["epochs"])
        assert all(epoch["loss"] > 0 and 0 <= epoch["selection"] <= 1 for epoch in record["epochs"])
        assert (
            record["epochs"][-1]["seen"]
            >= budget(mined, space).total
            > record["epochs"][-2]["seen"]
        )
        assert record["seconds"] > 0
    assert {tuple(record["settings"]) for record in trials} == {("mine.alpha", "stage2.k")}
    assert {"mine.alpha": 0.0, "stage2.k": 1} in [
        record["settings"] for record in trials
    ]  # the default's
    assert len({str(record["settings"]) for record in trials}) == 3

    before, more = files(space), small_space(samples=5, scheduler="none")
    seen.clear()
    again = sweep(mined, more, lambda record: seen.append((record["number"], {})))
    assert again[:3] == trials
    assert [record["number"] for record in again] == [0, 1, 2, 3, 4]
    assert sorted(number for number, _ in seen) == [3, 4]
    assert {name: data for name, data in files(more).items() if name in before} == before
    assert len({str(record["proposed"]) for record in again}) == 5

    after = files(more)
    assert sweep(mined, more, lambda record: seen.append((-1, {}))) == again
    assert (len(seen), files(more)) == (2, after)


def test_triplets_of_images_without_a_feature_do_not_count(mined: Mined) -> None:
    config = Config.model_validate(mined.settings)
    original, pseudo = mined.tables.counts(config)
    row = mined.tables.dataset.triplets_of("train").to_pylist()[0]
    lacking = replace(mined.tables, missing=frozenset([row["reference"]]))
    of_image = [
        row["reference"] in (one["reference"], one["target"])
        for one in mined.tables.dataset.triplets_of("train").to_pylist()
    ]
    assert lacking.counts(config) == (original - sum(of_image), pseudo)


def test_a_trial_is_what_training_with_its_settings_gives(
    mined: Mined, small_space: Callable[..., Space]
) -> None:
    space = small_space(samples=1)
    [record] = sweep(mined, space)
    alone = trial.train(
        mined.tables,
        space.configured(record["settings"]),
        Metric(),
        triplets=budget(mined, space).total,
    )
    assert [entry["selection"] for entry in record["epochs"]] == [
        entry["selection"] for entry in alone.history
    ]
    assert [entry["loss"] for entry in record["epochs"]] == pytest.approx(
        [entry["loss"] for entry in alone.history], rel=1e-4
    )
    short = trial.cut_short(mined.tables, space.configured(record["settings"]))
    assert record["images_cut_short"] == short


def test_images_cut_short_are_those_of_rare_texts_where_only_these_are_trained_on(
    mined: Mined, small_space: Callable[..., Space]
) -> None:
    config = small_space().config
    # More substitutes than neighbours are kept: every image is cut short
    settings = {"neighbours": 16, "s_max": 16, "floor": 0.3, "eps_low": 0.4, "eps_high": 0.99}
    counts = [
        trial.cut_short(
            mined.tables,
            config.model_copy(
                update={"mine": MineConfig.model_validate(settings | {"rare_texts": rare})}
            ),
        )
        for rare in (0, 1)
    ]
    assert 0 < counts[1] < counts[0]


@pytest.mark.slow
def test_a_failed_trial_is_kept_with_its_error_and_the_others_go_on(
    mined: Mined, small_space: Callable[..., Space]
) -> None:
    space = small_space(
        *("mine.alpha=none", "stage2.k=none", "stage2.bilinear_dim=8|99999"),
        search="grid",
        samples=2,
    )
    trials = sweep(mined, space)
    by_size = {record["settings"]["stage2.bilinear_dim"]: record for record in trials}
    assert sorted(record["number"] for record in trials) == [0, 1]
    failed = by_size[99999]
    assert (failed["status"], failed["value"], failed["epochs"]) == ("failed", None, [])
    assert failed["error"].startswith("ConfigError: ")
    assert "K = 99999" in failed["error"]
    assert (by_size[8]["status"], by_size[8]["error"]) == ("finished", None)


@pytest.mark.slow
def test_a_sweep_of_trials_that_all_fail_ends(
    mined: Mined, small_space: Callable[..., Space]
) -> None:
    space = small_space(
        "mine.alpha=none", "stage2.k=none", "stage2.bilinear_dim=99998|99999", samples=2
    )
    assert [record["status"] for record in sweep(mined, space)] == ["failed", "failed"]


def killed_once(note: Path) -> Callable[..., Any]:
    """Training in whose process the first epoch ends with SIGKILL, as often as the note has letters
    left.
    """
    train = trial.train

    def training(tables: Tables, config: Config, metric: Metric, report: Any, **rest: Any) -> Any:
        def each(result: Any, seen: int) -> None:
            report(result, seen)
            left = note.read_text()
            if left and config.stage2.k == 2:
                note.write_text(left[1:])
                os.kill(os.getpid(), signal.SIGKILL)

        return train(tables, config, metric, each, **rest)

    return training


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "status"), [(1, "finished"), (3, "failed")])
def test_a_trial_whose_process_is_killed_starts_anew_twice_at_most(
    kills: int,
    status: str,
    mined: Mined,
    small_space: Callable[..., Space],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tune import runner

    note = tmp_path / "kills"
    note.write_text("x" * kills)
    monkeypatch.setattr(runner, "train", killed_once(note))
    monkeypatch.setattr(runner, "_trial", by_value(runner._trial))
    space = small_space(
        "mine.alpha=none", "stage2.k=1|2", search="grid", samples=2, scheduler="none"
    )
    trials = sweep(mined, space)
    assert note.read_text() == ""
    assert [record["number"] for record in trials] == [0, 1]
    by_k = {record["settings"]["stage2.k"]: record for record in trials}
    assert by_k[1]["status"] == "finished"
    assert by_k[2]["status"] == status
    if status == "finished":
        epochs = [epoch["epoch"] for epoch in by_k[2]["epochs"]]
        assert epochs == list(range(len(epochs)))  # those of the killed process do not count
        assert by_k[2]["epochs"][-1]["seen"] >= budget(mined, space).total
    else:
        assert by_k[2]["value"] is None
        assert by_k[2]["error"]


def by_value(function: Any) -> Any:
    """Return the trial's function as worker processes get it where it is not the module's own:
    with the globals of here.
    """

    def trial_of_this_test(
        proposed: Any, tables: Any, space: Any, metric: Any, triplets: Any
    ) -> None:
        function(proposed, tables, space, metric, triplets)

    return trial_of_this_test


@pytest.mark.slow
def test_a_trial_that_is_poorer_than_those_that_have_ended_is_stopped(
    mined: Mined, small_space: Callable[..., Space]
) -> None:
    space = small_space(samples=4, reduction=2)
    whole, kept = budget(mined, space), journal(space, mined)
    for number, alpha in enumerate((0.0, 0.01, 0.02)):
        proposed = {"mine.alpha": alpha, "stage2.k": 1}
        epochs = [
            {"seen": seen, "epoch": 0, "score": 2.0, "selection": 2.0}
            for seen in (whole.grace, whole.total)
        ]
        numbers = {"number": number, "value": 2.0, "started": 0.0, "seconds": 1.0}
        measured = {
            "proposed": proposed,
            "settings": proposed,
            "status": "finished",
            "epochs": epochs,
            "error": None,
        }
        kept.write(numbers | measured)
    record = sweep(mined, space)[3]
    assert record["status"] == "stopped"
    assert whole.grace <= record["epochs"][-1]["seen"] < whole.total
    assert record["value"] == max(epoch["selection"] for epoch in record["epochs"])


@pytest.mark.slow
def test_a_trial_that_cannot_be_kept_ends_the_sweep_with_that_error_and_is_not_run_again(
    mined: Mined, small_space: Callable[..., Space]
) -> None:
    space, numbers = small_space(samples=3), []

    def full(record: Record) -> None:
        numbers.append(record["number"])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs")

    with pytest.raises(OSError, match="No space left on device"):
        sweep(mined, space, full)
    assert len(numbers) == 1
    assert list(files(space)) == [f"{numbers[0]:05d}.json"]


@pytest.mark.slow
def test_a_trial_reads_no_image_runs_no_encoder_and_never_sees_val(
    mined: Mined, small_space: Callable[..., Space], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(mined.run.root, copy, ignore=shutil.ignore_patterns(".train", ".lock"))
    for folder in ("catalogue/images", "encoder", "zero_shot", "stage1"):
        assert (copy / folder).is_dir()
        shutil.rmtree(copy / folder)
    space = small_space(samples=2)
    run = Run(str(copy), {"format": "synthetic", "root": ""})
    tables = Tables.of(Context(space.config, run), splits=("train", "selection"))
    shutil.rmtree(copy)
    for table in (tables.dataset.triplets, tables.dataset.gallery):
        assert set(table["split"].to_pylist()) == {"train", "selection"}
    trials = run_trials(tables, space, Metric(), journal(space, mined), budget(mined, space))
    assert [record["error"] for record in trials] == [None, None]
    assert all(record["value"] is not None for record in trials)
