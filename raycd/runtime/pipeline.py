"""The stages in order, each skipped when its output is already there.

A stage is done when its folder holds the fingerprint that its settings, its inputs and the data set
ask for. So a pipeline that is started again continues, and a changed setting, or a file of the data
set that came, went or changed, redoes the stages that it touches and those after them.
"""

from __future__ import annotations

import os.path
import posixpath
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from raycd import __version__, progress
from raycd.config import Config, flatten
from raycd.data.folder import is_local
from raycd.data.read import attributes_hash, content_hash
from raycd.data.schema import Dataset
from raycd.errors import ConfigError
from raycd.run import Run, Writing, fingerprint
from raycd.runtime import cluster, local_ray, results, stages, training
from raycd.runtime.stages import Context
from raycd.runtime.tracking import Tracker
from raycd.train.fuse import new_head


@dataclass(frozen=True)
class Stage:
    """One step: what it does, whose output it reads, which settings decide its output."""

    name: str
    work: Callable[[Context, Writing], None]
    inputs: Sequence[str] = ()
    settings: Sequence[str] = ()  # dotted names; a section stands for all of its fields
    reads_data: bool = True
    reads_attributes: bool = False
    version: int = 1  # raised when the stage would give something else for the same settings


_DATA_LIMITS = ("data.max_pixels", "data.min_side")

STAGES = (
    # First: a wrong encoder is refused before anything is drawn or read.
    Stage("encoder", stages.encoder, settings=["encoder", "pretrain"], reads_data=False),
    Stage("catalogue", stages.catalogue, settings=["data.synthetic"], reads_data=False, version=3),
    Stage(
        "zero_shot",
        stages.zero_shot,
        ["encoder"],
        ["embed.precision", *_DATA_LIMITS, "data.max_missing"],
    ),
    Stage("stage1", stages.stage1, ["zero_shot"], ["stage1", "seed", "evaluate.protocol"]),
    Stage("embed", stages.embed, ["stage1"], ["embed.precision", *_DATA_LIMITS]),
    Stage(
        "mine",
        stages.mine_candidates,
        ["embed"],
        [
            "mine.neighbours",
            "mine.floor",
            "mine.pool",
            "mine.worker_mib",  # HNSW and IVF tables depend on the shards that it cuts
            "mine.index",
            "mine.hnsw_m",
            "mine.hnsw_ef",
            "mine.ivf_lists",
            "mine.ivf_probes",
            "mine.recall_sample",
        ],
        version=3,
    ),
    Stage(
        "filter",
        stages.filter_pseudo,
        ["mine"],
        ["mine.thresholds", "mine.eps_low", "mine.eps_high", "mine.s_max", "mine.alpha"],
        reads_data=False,
    ),
    Stage("stage2", stages.stage2, ["embed", "filter"], ["stage2", "seed", "evaluate.protocol"]),
    Stage(
        "evaluate",
        stages.evaluate_variants,
        ["zero_shot", "stage2"],
        ["evaluate.protocol", "evaluate.ks"],
    ),
    Stage(
        "bundle",
        stages.bundle_up,
        ["evaluate"],
        ["evaluate", "index"],
        reads_attributes=True,
        version=4,
    ),
)
NOT_THE_RESULT = (
    # What the run is called, and where it and its record are kept.
    "preset",
    "name",
    "runs",
    "tracking",
    # They choose the data set, whose content is a part of the fingerprint itself.
    "data.format",
    "data.root",
    "data.categories",
    "data.triplets",
    "data.gallery",
    "data.selection_fraction",
    # How fast a stage is, and on what.
    "compute",
    "pretrain.cache",
    "stage1.loader_workers",
    "stage1.cache_mib",
    "embed.batch_size",
    "mine.batch_size",
    "evaluate.batch_size",
    # Of sweeps, which check their settings themselves (tune/journal.py).
    "tune",
)
"""Settings, or whole sections, that change no stage's output: each other one is in STAGES."""
_WITHOUT_RAY = {"catalogue", "encoder", "filter", "evaluate", "bundle"}


@dataclass(frozen=True)
class Outcome:
    """What a pipeline leaves."""

    run: Run
    metrics: dict[str, Any] | None
    """metrics.json; None where the pipeline stopped before the evaluation."""
    done: list[str]
    """Stages that ran this time."""


def within(name: str, settings: Sequence[str]) -> bool:
    """Tell whether a setting is one of `settings` or lies in a section among them."""
    return any(name == setting or name.startswith(f"{setting}.") for setting in settings)


def run_name(config: Config) -> str:
    """What the run is called: its folder under `config.runs`. Raises ConfigError where nothing
    names it.
    """
    name = config.name or config.preset
    if not name:
        raise ConfigError(
            "the run has no name", do="give it one (--name my-run), or start from a --preset"
        )
    return name


def run_folder(config: Config) -> Run:
    """The run that a configuration names. Raises ConfigError without a name, RunError for another
    run's folder.
    """
    root = config.data.root
    if root and is_local(root):
        root = os.path.abspath(os.path.expanduser(root))
    return Run(
        posixpath.join(config.runs, run_name(config)), {"format": config.data.format, "root": root}
    )


def recorded(run: Run, stage: str) -> dict[str, Any]:
    """stage.json of a stage that the pipeline has brought."""
    found = run.record(stage)
    assert found is not None, f"{stage} has not been brought"
    return found


def run(config: Config, *, until: str = STAGES[-1].name) -> Outcome:
    """Bring the run up to and including stage `until`; after the last one, write metrics.json and
    report.html.
    """
    run_name(config)
    local_ray.address()  # a wrong one is told before any work
    # Read before the folder is made: a mistyped data.root must not claim the run's name, nor wait
    # for weights.
    dataset = (
        None if config.data.format == "synthetic" else stages.dataset(config, config.data.root)
    )
    folder = run_folder(config)
    _warn_of_working_copy(folder)
    with folder.locked(), ExitStack() as stack:
        pipeline = _Pipeline(config, folder, stack, dataset)
        for stage in STAGES:
            if stage.name != "catalogue" or config.data.format == "synthetic":
                pipeline.bring(stage)
            if stage.name == "encoder":
                pipeline.check_head()
            if stage.name == until:
                break
        metrics = None
        if until == STAGES[-1].name:
            metrics = pipeline.finish()
        return Outcome(folder, metrics, pipeline.done)


def _warn_of_working_copy(folder: Run) -> None:
    """A job submitted with --working-dir runs in a copy that Ray deletes some time after its end."""
    if folder.is_local and "/runtime_resources/working_dir_files/" in folder.root:
        progress.say(
            f"warning: {folder.root} lies in this job's copy of the working folder, which Ray deletes: "
            f"give --runs a folder outside of it, or a URI"
        )


class _Pipeline:
    def __init__(
        self, config: Config, folder: Run, stack: ExitStack, dataset: Dataset | None
    ) -> None:
        self.config, self.folder, self._stack = config, folder, stack
        self.context = Context(config, folder, _dataset=dataset)
        self.done: list[str] = []
        self._data_hash: str | None = None
        self._tracker: Tracker | None = None
        self._on_ray = False

    def bring(self, stage: Stage) -> None:
        """Do a stage, unless it is done."""
        mark = self._fingerprint(stage)
        record = self.folder.record(stage.name)
        if record is not None and record["fingerprint"] == mark:
            progress.say(f"{stage.name}: done before, in {progress.duration(record['seconds'])}")
            return
        if stage.name not in _WITHOUT_RAY and not self._on_ray:
            self._stack.enter_context(cluster.connected())
            self._on_ray = True
        tracker = self.tracker()
        about = {
            "inputs": list(stage.inputs),
            "config": self.config.model_dump(mode="json"),
            "raycd": __version__,
        }
        with tracker.stage(stage.name) as tracked:
            self.context.log_epochs = tracked.log_epochs
            with self.folder.writing(stage.name, mark, **about) as writing:
                stage.work(self.context, writing)
            self.folder.discard(
                f"{training.STORAGE}/{stage.name}-*"
            )  # its checkpoints have done their service
            record = recorded(self.folder, stage.name)
            tracked.log_metrics(
                {name: record[name] for name in ("seconds", "counts", "variants") if name in record}
            )
        self.done.append(stage.name)
        progress.say(f"{stage.name}: done in {progress.duration(record['seconds'])}")

    def check_head(self) -> None:
        """Refuse a fusion head that does not fit the encoder now, not after hours of stage 1."""
        new_head(self.config, self.context.recorded("encoder", "dim"))

    def finish(self) -> dict[str, Any]:
        """metrics.json, report.html and the MLflow record of the whole, where anything has changed."""
        metrics = results.metrics(self.context, [stage.name for stage in STAGES])
        mark = fingerprint(metrics, self.config.model_dump(mode="json"))
        if self.done or self.folder.read_json(results.MARK) != mark:
            tracker = self.tracker()
            self.folder.write_json(results.METRICS, metrics)
            self.folder.write_bytes(results.REPORT, results.report(self.context, metrics).encode())
            tracker.log_results(metrics)
            for name in (results.METRICS, results.REPORT):
                tracker.log_artifact(self.folder.local(name))
            tracker.register(self.folder.local("bundle"), self.context.recorded("bundle", "digest"))
            self.folder.write_json(results.MARK, mark)
        return metrics

    def tracker(self) -> Tracker:
        """The MLflow record, opened before the first stage that has something to do."""
        if self._tracker is None:
            known = self.folder.read_json("mlflow.json") or {}
            self._tracker = Tracker.open(
                self.config, self.config.runs, run_id=known.get("run_id", "")
            )
            self._stack.enter_context(self._tracker)
            self.folder.write_json("mlflow.json", {"run_id": self._tracker.run_id})
        return self._tracker

    def _fingerprint(self, stage: Stage) -> str:
        inputs = [recorded(self.folder, name)["fingerprint"] for name in stage.inputs]
        data = [self._dataset_hash() if stage.reads_data else None]
        if stage.reads_attributes:
            data.append(attributes_hash(self.context.dataset))
        return fingerprint(stage.name, stage.version, self._settings(stage), inputs, *data)

    def _settings(self, stage: Stage) -> dict[str, Any]:
        return {
            name: value
            for name, value in flatten(self.config).items()
            if within(name, stage.settings) and not within(name, NOT_THE_RESULT)
        }

    def _dataset_hash(self) -> str:
        if self._data_hash is None:
            self._data_hash = content_hash(
                self.context.dataset, drawn=self.config.data.format == "synthetic"
            )
        return self._data_hash
