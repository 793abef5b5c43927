"""The cells of a comparison: one training each of one row, variant, length and seed.

They lie in <run>/compare/cells/, one JSON file each, named by a fingerprint of all that a training
depends on. So a comparison that is started again trains what is missing, two rows or forms that ask
for the same training share it, and a changed setting trains anew what it touches.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray

from jobs.comparison.plan import deciding
from raycd.config import Config
from raycd.errors import RunError
from raycd.model import fusion, precision, threads
from raycd.progress import Bar
from raycd.run import Run, fingerprint
from raycd.runtime import cluster, pipeline
from raycd.runtime.record.child_runs import ChildRuns
from raycd.runtime.record.tracking import Tracker
from raycd.runtime.stages import since, weights
from tune.journal import used
from tune.trial import Tables, evaluated, result

FOLDER, IDENTITY = "compare", "compare/comparison.json"
SHARED = ("encoder", "zero_shot", "stage1", "embed", "mine")  # stages that all cells read
_DECIDING = (*SHARED, "adapt", "compose")  # those whose settings decide what these give
_HELD_OUT = "data.selection_fraction"
VERSION = 1  # raised when the same settings give another result than before

Record = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Cell:
    """One training, or the one computation of a head without weights."""

    name: str
    """What a person calls it in MLflow: the row and the seed."""
    tables: Tables
    config: Config
    """Whole: head, pseudo triplets or none, epochs and seed of this cell."""
    inputs: Mapping[str, str]
    """Fingerprints of the stages that it reads."""
    is_trained: bool = True

    def settings(self) -> dict[str, Any]:
        """Return the settings that it depends on, by dotted name."""
        config, stage2 = self.config, self.config.stage2
        head = fusion.head_class(stage2.head)
        # Maps and tokens, which some heads need, depend on settings of `embed`.
        more = ["embed"] if head.needs else []
        if self.is_trained:
            found = deciding(config, ["stage2", *(["filter"] if stage2.pseudo else [])], more)
        else:
            more += ["stage2.head", "evaluate.protocol", "evaluate.rerank_depth"]
            found = deciding(config, [], more)
        if not head.reranks:
            del found["evaluate.rerank_depth"]
        return found

    def fingerprint(self) -> str:
        """Return the hash of all that its result depends on."""
        stage2 = self.config.stage2
        mined = self.is_trained and (stage2.pseudo or stage2.hard_negatives > 0)
        reads = {"embed", "mine"} if mined else {"embed"}
        inputs = {name: value for name, value in self.inputs.items() if name in reads}
        dataset, stages = self.tables.dataset, ("stage2", "evaluate")
        changed = [now for stage in stages for now in since.changes(stage, self.config, dataset)]
        settings = precision.before_auto(self.settings())
        return fingerprint("cell", VERSION, settings, inputs, *changed)

    @cached_property
    def path(self) -> str:
        """Return its file in the run."""
        kind = self.config.stage2.head
        if self.is_trained:
            kind += f"-{'pseudo' if self.config.stage2.pseudo else 'original'}-{self.config.seed}"
        return f"{FOLDER}/cells/{kind}-{self.fingerprint()[:12]}.json"


def _shared(config: Config) -> dict[str, Any]:
    """Return the settings that decide what all cells read, as JSON has them."""
    found = deciding(config, _DECIDING) | {_HELD_OUT: config.data.selection_fraction}
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


class Cells:
    """The folder of a run's cells.

    Args:
        run: The run whose features and tables the cells read.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def check(self, config: Config) -> None:
        """Raise RunError where the settings of encoder or tables are not those of the cells.

        Before the pipeline begins: it would train another encoder in the place of theirs.
        """
        known = self.run.read_json(IDENTITY)
        if known is None or not self.run.names(f"{FOLDER}/cells"):
            return
        noted = used(known["settings"])  # an earlier raycd has noted fewer
        now = {name: value for name, value in used(_shared(config)).items() if name in noted}
        if changes := precision.changes(noted, now):
            raise self._changed("; ".join(changes[:5]))

    def claim(
        self, config: Config, inputs: Mapping[str, str], made_with: Mapping[str, str]
    ) -> None:
        """Note whose features the cells read. Raises RunError where those have changed since.

        Args:
            inputs: Fingerprints of the stages that cells read.
            made_with: Hashes of the weights that those were made with (`runtime.stages.weights`).
        """
        known = self.run.read_json(IDENTITY)
        if known is not None and self.run.names(f"{FOLDER}/cells"):
            changed = [name for name, value in inputs.items() if known["inputs"].get(name) != value]
            changed += weights.changed(known.get(weights.ENTRY, {}), made_with)
            if changed:
                raise self._changed(f"another output of {', '.join(changed)}")
        else:
            about = {"settings": _shared(config), "inputs": dict(inputs)}
            self.run.write_json(IDENTITY, about | {weights.ENTRY: dict(made_with)})

    def _changed(self, got: str) -> RunError:
        return RunError(
            f"the encoder or the tables of {self.run.root} are not those that its comparison used",
            got=got,
            expected=f"what the cells in {self.run.path(FOLDER)} were trained on",
            do="go on with the settings they were trained with, give this run a --name of its own, "
            "or delete that folder",
        )

    def read(self, cell: Cell) -> Record | None:
        """Return a cell's result; None where there is none, or it has failed."""
        found: Record | None = self.run.read_json(cell.path)
        return None if found is None or "error" in found else found

    def write(self, record: Record) -> None:
        """Keep a cell's result, or its error."""
        text = json.dumps(record, separators=(",", ":"), default=str)
        self.run.write_bytes(record["path"], text.encode())


class CellRuns(ChildRuns):
    """Each cell as an MLflow child run."""

    def __init__(self, tracker: Tracker, cells: Cells) -> None:
        super().__init__(tracker, "cells", cells.run.path(FOLDER, "cells"))
        self._cells = cells

    def _keep(self, record: Record) -> None:
        self._cells.write(record)

    def _hand_in(self, record: Record) -> str:
        tags = {"raycd.cell": record["path"], "raycd.head": record["head"]}
        run = self._tracker.child(record["name"], record["settings"], tags, began=record["started"])
        numbers = {name: record[name] for name in ("seconds", "seen", "parameters")}
        if record["selection"] is not None:
            numbers["selection"] = record["selection"]
        run.log_metrics({"val": record["recalls"], **numbers})
        run.close(ended=record["started"] + record["seconds"])
        return run.run_id


@contextmanager
def tracked(config: Config, cells: Cells) -> Iterator[tuple[Tracker, CellRuns]]:
    """Open the comparison's MLflow run, the one that an earlier start has opened."""
    known = cells.run.read_json(f"{FOLDER}/mlflow.json") or {}
    name = f"{pipeline.run_name(config)}-compare"
    with Tracker.open(config, config.runs, run_id=known.get("run_id", ""), name=name) as tracker:
        cells.run.write_json(f"{FOLDER}/mlflow.json", {"run_id": tracker.run_id})
        yield tracker, CellRuns(tracker, cells)


def run_all(
    wanted: Sequence[Cell],
    cells: Cells,
    *,
    concurrent: int = 0,
    ended: Callable[[Record], None] = lambda record: None,
) -> dict[str, Record]:
    """Train the cells that have no result yet, and return path -> result of all.

    A cell that fails has its error as its result; the others go on, and the next start tries it
    again. One whose process was killed starts anew, twice at most.

    Args:
        wanted: The cells in the order in which they are to be trained.
        concurrent: Cells at a time; 0: as many as fit, with a CPU left for everything else.
        ended: Called with each result of a cell that has none yet, after it was kept.
    """
    distinct = {cell.path: cell for cell in wanted}
    found = {path: known for path, cell in distinct.items() if (known := cells.read(cell))}
    todo = [cell for path, cell in distinct.items() if path not in found]
    tables = {id(cell.tables): cell.tables for cell in todo}
    shared = {number: ray.put(one) for number, one in tables.items()}
    limit = concurrent or _fitting(todo)
    running: dict[Any, Cell] = {}
    with Bar("cells", total=len(distinct), unit="trainings", start=len(found)) as bar:
        while todo or running:
            while todo and len(running) < limit:
                cell = todo.pop(0)
                task = _task(cell.config).remote(shared[id(cell.tables)], cell.config)
                running[task] = cell
            [done], _ = ray.wait(list(running))
            cell = running.pop(done)
            record = _record(cell, {"started": time.time(), **result(done)})
            cells.write(record)
            found[cell.path] = record
            if "error" not in record:
                ended(record)
            bar.advance()
    return found


def _task(config: Config) -> Any:
    need = cluster.worker_resources(config.compute)
    return ray.remote(num_cpus=need["CPU"], num_gpus=need.get("GPU", 0), max_retries=2)(_train)


def _fitting(todo: Sequence[Cell]) -> int:
    if not todo:
        return 1
    compute = todo[0].config.compute
    need, each = cluster.worker_resources(compute), compute.threads or 1
    return min(cluster.fitting(10_000, need), max(1, (cluster.cpus() - 1) // each))


def _train(tables: Tables, config: Config) -> Record:
    """Train and evaluate in a process of its own."""
    threads.use(config.compute.threads or 1)
    began = time.time()
    try:
        return {**evaluated(tables, config, None, "val"), "started": began}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "started": began}


def _record(cell: Cell, result: Record) -> Record:
    return {
        "path": cell.path,
        "name": cell.name,
        "head": cell.config.stage2.head,
        "settings": cell.settings(),
        "fingerprint": cell.fingerprint(),
        **result,
    }
