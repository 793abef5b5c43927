"""The stages in order, each of which is skipped where its output is up to date.

A stage is done when its folder has the fingerprint that its settings, its inputs and the data set
give. So a pipeline that is started again continues, and a changed setting or file of the data set
redoes the stages that depend on it. A stage that is trained a second time has the same fingerprint,
but not always the same weights: where a later stage was made with others, that is done again, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from raycd import __version__, progress
from raycd.config import Config, flatten
from raycd.data.read import attributes_hash, content_hash
from raycd.data.schema import Dataset
from raycd.model import fusion
from raycd.redact import json_without_passwords
from raycd.run import UNFINISHED, Run, Writing, fingerprint
from raycd.runtime import cluster, local_ray, precision
from raycd.runtime.evaluate import evaluation, results
from raycd.runtime.naming import run_folder as run_folder
from raycd.runtime.naming import run_name as run_name
from raycd.runtime.record import machines
from raycd.runtime.record.tracking import Tracker
from raycd.runtime.stages import (
    beginning,
    begun,
    bundle,
    catalogue,
    demo_data,
    embed,
    maps,
    mine,
    reading,
    since,
    train,
    weights,
)
from raycd.runtime.stages.context import CACHES, Context, needs
from raycd.runtime.stages.fresh import fresh_head
from raycd.runtime.train import training


@dataclass(frozen=True)
class Stage:
    """A step: what it does, whose output it reads, and which settings its output depends on."""

    name: str
    work: Callable[[Context, Writing], None]
    inputs: Sequence[str] = ()
    settings: Sequence[str] = ()  # dotted names; a section stands for all of its fields
    reads_data: bool = True
    reads_attributes: bool = False
    reads_titles: bool = False  # titles and attributes are read where the head learns from them
    need: str = ""  # it is done only where the head needs this of the encoder
    reads_needs: bool = False  # the stages of the head's needs are inputs, too
    optional: Sequence[str] = ()  # inputs of the runs that have these stages
    also: Callable[[Config], list[str]] = lambda config: []  # what else it depends on
    version: int = 1  # raised when the same settings give another output than before


_DATA_LIMITS = ("data.max_pixels", "data.min_side")
_MINE_INDEX = (
    "mine.worker_mib",  # HNSW and IVF tables depend on the shards that it cuts
    "mine.index",
    "mine.hnsw_m",
    "mine.hnsw_ef",
    "mine.ivf_lists",
    "mine.ivf_probes",
)

STAGES = (
    # First, so that a wrong encoder is refused before anything is drawn or read.
    Stage(
        "encoder",
        embed.encoder,
        settings=["encoder", "pretrain"],
        reads_data=False,
        also=beginning.hashes,
    ),
    Stage("catalogue", demo_data.draw, settings=["data.synthetic"], reads_data=False, version=3),
    Stage(
        "zero_shot",
        embed.zero_shot,
        ["encoder"],
        [
            *("embed.precision", *_DATA_LIMITS, "data.max_missing"),
            *("data.captions", "data.empty_captions"),
        ],
    ),
    Stage(
        "adapt",
        catalogue.adapt,
        ["zero_shot"],
        ["adapt", "seed", "embed.precision", *_DATA_LIMITS, "data.title"],
        reads_attributes=True,
    ),
    Stage(
        "compose",
        catalogue.compose,
        ["zero_shot"],
        ["compose", "seed", "data.title", *_MINE_INDEX],
        reads_attributes=True,
        optional=["adapt"],
        also=reading.wording,
        version=3,
    ),
    Stage(
        "stage1",
        train.stage1,
        ["zero_shot"],
        ["stage1", "seed", "evaluate.protocol"],
        optional=["adapt", "compose"],
    ),
    Stage("embed", embed.embed, ["stage1"], ["embed.precision", *_DATA_LIMITS]),
    *(
        Stage(
            CACHES[need],
            work,
            ["embed"],
            ["embed.precision", "embed.map_size", *_DATA_LIMITS],
            need=need,
        )
        for need, work in (("map", maps.cache_map), ("middle", maps.cache_middle))
    ),
    Stage(CACHES["tokens"], maps.cache_tokens, ["embed"], ["embed.precision"], need="tokens"),
    Stage(
        "mine",
        mine.mine_candidates,
        ["embed"],
        [
            "mine.neighbours",
            "mine.floor",
            "mine.pool",
            *_MINE_INDEX,
            "mine.recall_sample",
        ],
        version=3,
    ),
    Stage(
        "filter",
        mine.filter_pseudo,
        ["mine"],
        [
            "mine.thresholds",
            "mine.eps_low",
            "mine.eps_high",
            "mine.s_max",
            "mine.alpha",
            "mine.replace",
            "mine.rare_texts",
        ],
        reads_data=False,
    ),
    Stage(
        "stage2",
        train.stage2,
        ["embed", "filter"],
        ["stage2", "seed", "evaluate.protocol", "evaluate.rerank_depth"],
        reads_needs=True,
        reads_titles=True,
    ),
    Stage(
        "evaluate",
        evaluation.evaluate_variants,
        ["zero_shot", "stage2"],
        [
            "evaluate.protocol",
            "evaluate.ks",
            "evaluate.map_ks",
            "evaluate.captions",
            "evaluate.rerank_depth",
        ],
        optional=["adapt"],
    ),
    Stage(
        "bundle",
        bundle.bundle_up,
        ["evaluate"],
        ["evaluate", "index"],
        reads_attributes=True,
        version=4,
    ),
)
_HOW_FAST = (
    *("compile", "decode_on", "loader_workers", "cache_mib", "chunk"),
    "explosion",  # what it stops has no result
)
NOT_THE_RESULT = (
    # What the run is called, and where it and its record are kept.
    "preset",
    "name",
    "runs",
    "tracking",
    "registry",
    # They choose the data set, whose content is a part of the fingerprint itself.
    "data.format",
    "data.root",
    "data.categories",
    "data.triplets",
    "data.gallery",
    "data.selection_fraction",
    # How fast a stage is, and on what.
    "compute",
    "train",
    "pretrain.cache",
    *("embed.compile", "stage2.compile"),
    *(f"{stage}.{name}" for stage in ("adapt", "stage1") for name in _HOW_FAST),
    "stage2.explosion",
    "embed.batch_size",
    "mine.batch_size",
    "evaluate.batch_size",
    # Of sweeps, which check their settings themselves (tune/journal.py).
    "tune",
)
"""Settings, or whole sections, that change no stage's output: each other one is in STAGES."""
_WITHOUT_RAY = {"catalogue", "encoder"}
_MEASURED = ("seconds", "counts", "variants")  # of a stage's record, for MLflow


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


def recorded(run: Run, stage: str) -> dict[str, Any]:
    """Return stage.json of a stage that has run."""
    found = run.record(stage)
    assert found is not None, f"{stage} has not run"
    return found


def stages_of(config: Config, dataset: Dataset | None = None) -> list[Stage]:
    """Return the stages that a run needs for its head and its data set; None: that of the demo."""
    unless = {
        "catalogue": config.data.format == "synthetic",
        "adapt": config.adapt.epochs > 0,
        "compose": reading.composes(config, dataset),
    }
    needed = ("", *needs(config))
    return [own for own in STAGES if own.need in needed and unless.get(own.name, True)]


def run(config: Config, *, until: str = STAGES[-1].name) -> Outcome:
    """Run the stages up to and including `until`; after the last, write metrics and report."""
    run_name(config)
    local_ray.address()  # refuses a wrong RAY_ADDRESS before any work
    # Read before the folder is made: a mistyped data.root must not claim the run's name, nor wait
    # for weights.
    dataset = reading.unless_drawn(config)
    config = reading.fitted(config, dataset)
    if config.registry.alias:
        evaluation.named_metric(config.registry.metric, config, dataset)
    folder = run_folder(config)
    if folder.is_local:
        cluster.warn_of_working_copy(folder.root)
    with folder.locked(), ExitStack() as stack:
        pipeline = _Pipeline(config, folder, stack, dataset)
        for stage in pipeline.stages:
            pipeline.run(stage)
            if stage.name == "encoder":
                fresh_head(config, folder)  # one that does not fit it is refused now
            if stage.name == until:
                break
        metrics = None
        if until == STAGES[-1].name:
            metrics = pipeline.finish()
        return Outcome(folder, metrics, pipeline.done)


class _Pipeline:
    def __init__(
        self, config: Config, folder: Run, stack: ExitStack, dataset: Dataset | None
    ) -> None:
        self.config, self.folder, self._stack = config, folder, stack
        self.context = Context(config, folder, _dataset=dataset)
        self.stages = stages_of(config, dataset)
        self.done: list[str] = []
        self._data_hash: str | None = None
        self._tracker: Tracker | None = None
        # Of stages that are whole, too: a job was killed before it could remove it
        self._left = {name: folder.names(name) for name in (UNFINISHED, training.STORAGE)}

    def run(self, stage: Stage) -> None:
        """Run a stage, unless it is done."""
        inputs = {name: recorded(self.folder, name) for name in self._inputs(stage)}
        made_with, record = weights.of_inputs(inputs), self.folder.record(stage.name)
        ways = precision.ways(self.config, lambda own: self._settings(stage, own))
        prints = [self._fingerprint(stage, inputs, way) for way in ways]
        is_current = record and any(weights.is_current(record, one, made_with) for one in prints)
        if record and is_current and not beginning.has_other_source(record, self.config):
            progress.say(f"{stage.name}: done before, in {progress.duration(record['seconds'])}")
            if any(name.startswith(f"{stage.name}-") for name in self._left[UNFINISHED]):
                self.folder.discard_leftovers(UNFINISHED, f"{stage.name}-*")
            if (own := record.get(training.CHECKPOINTS)) in self._left[training.STORAGE]:
                self.folder.discard_leftovers(training.STORAGE, own)
            return
        if stage.name not in _WITHOUT_RAY:
            self._stack.enter_context(cluster.connected(self.config.compute))
        config = self.config
        if len(ways) > 1:
            encoders = made_with.values()
            config = begun.settled(config, self.folder, stage.name, prints, encoders)
        used = self._settings(stage, config)
        wanted = prints[ways.index(used)]
        tracker = self.tracker()
        if stage.reads_data:
            tracker.log_dataset(self.context.own, self._dataset_hash(), self.config)
        about = {
            "inputs": list(inputs),
            weights.ENTRY: made_with,
            "config": json_without_passwords(self.config.model_dump(mode="json")),
            "raycd": __version__,
            **precision.entry(used),
        }
        with tracker.stage(stage.name, fingerprint(wanted, made_with)) as tracked:
            self.context.config, self.context.tracked = config, tracked
            with (
                machines.watched(tracked, self.config.tracking.machine_seconds),
                self.folder.writing(stage.name, wanted, **about) as writing,
            ):
                stage.work(self.context, writing)
            self.folder.discard_leftovers(training.STORAGE, f"{stage.name}-*")  # checkpoints
            record = recorded(self.folder, stage.name)
            tracked.log_metrics({n: record[n] for n in _MEASURED if n in record})
        self.done.append(stage.name)
        progress.say(f"{stage.name}: done in {progress.duration(record['seconds'])}")

    def _inputs(self, stage: Stage) -> list[str]:
        """Return the stages whose output a stage reads."""
        wanted = needs(self.config) if stage.reads_needs else ()
        optional = [own.name for own in self.stages if own.name in stage.optional]
        return [*stage.inputs, *optional, *(own.name for own in STAGES if own.need in wanted)]

    def finish(self) -> dict[str, Any]:
        """Write metrics.json, report.html and the MLflow record, unless they are up to date."""
        self.context.config = self.config  # that of a stage has what auto was there
        metrics = results.metrics(self.context, [stage.name for stage in self.stages])
        wanted = fingerprint(metrics, self.config.model_dump(mode="json"))
        if self.done or self.folder.read_json(results.FINISHED) != wanted:
            self._stack.enter_context(cluster.connected(self.config.compute))
            results.hand_in(self.context, metrics, self.tracker())
            self.folder.write_json(results.FINISHED, wanted)
        return metrics

    def tracker(self) -> Tracker:
        """Return the MLflow record, opened before the first stage that has to run."""
        if self._tracker is None:
            run_id = (self.folder.read_json("mlflow.json") or {}).get("run_id", "")
            self._tracker = Tracker.open(self.config, self.config.runs, run_id=run_id)
            self._stack.enter_context(self._tracker)
            self.folder.write_json("mlflow.json", {"run_id": self._tracker.run_id})
        return self._tracker

    def _fingerprint(
        self, stage: Stage, inputs: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> str:
        before = [record["fingerprint"] for record in inputs.values()]
        data = [self._dataset_hash() if stage.reads_data else None]
        if stage.reads_attributes:
            data.append(attributes_hash(self.context.own))
        if stage.reads_titles and fusion.head_class(self.config.stage2.head).on_titles:
            data += [self.config.data.title, attributes_hash(self.context.own)]
        data += stage.also(self.config)
        if "compose" in inputs:  # of what it composed a share is held out, which `own` cannot show
            data.append(f"{self.config.data.selection_fraction}")
        if stage.reads_data:
            data += since.changes(stage.name, self.config, self.context.own)
        return fingerprint(stage.name, stage.version, settings, before, *data)

    def _settings(self, stage: Stage, config: Config) -> dict[str, Any]:
        idle = [*NOT_THE_RESULT, *beginning.unused(config)]
        if not fusion.head_class(self.config.stage2.head).reranks and stage.name != "bundle":
            idle.append("evaluate.rerank_depth")
        return {
            name: value
            for name, value in flatten(config).items()
            if within(name, stage.settings) and not within(name, idle)
        }

    def _dataset_hash(self) -> str:
        if self._data_hash is None:
            drawn = self.config.data.format == "synthetic"
            self._data_hash = content_hash(self.context.own, drawn=drawn)
        return self._data_hash
