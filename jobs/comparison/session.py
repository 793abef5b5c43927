"""A comparison at work: its run locked, its cells checked, its MLflow run open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.comparison import results
from jobs.comparison.cells import FOLDER, SHARED, Cell, CellRuns, Cells, Record, run_all, tracked
from raycd.compare.lines import Table
from raycd.compare.writing import Grid
from raycd.config import Config
from raycd.data.schema import Dataset
from raycd.errors import ConfigError, TrackingError
from raycd.evaluate import AVERAGE, Metric
from raycd.progress import say
from raycd.run import Run
from raycd.runtime import local_ray, pipeline
from raycd.runtime.record import tracking
from raycd.runtime.record.tracking import Tracker
from raycd.runtime.stages import reading, weights


def checked(config: Config) -> Dataset | None:
    """Raise what can be told before anything starts; return the data set, unless it is drawn.

    Raises:
        ConfigError: The run has no name or begins with a bundle, or each query is to be asked
            twice.
        DataError: The data set cannot be read, or has no val triplets: then no folder is made.
        RunError: The run has cells of another encoder, or RAY_ADDRESS is wrong.
    """
    pipeline.run_name(config)
    if config.encoder.bundle:
        raise ConfigError(
            "the heads of a comparison begin anew, all of them",
            got=f"encoder.bundle {config.encoder.bundle}, whose head a run goes on from",
            expected="encoder.name and encoder.pretrained",
            do="leave encoder.bundle out, or give its encoder as "
            "--encoder.name local-dir:BUNDLE/encoder",
        )
    reading.check_asked_once(config)
    local_ray.address()
    dataset = reading.unless_drawn(config)
    if dataset is not None:
        reading.check_measured(dataset)
    Cells(pipeline.run_folder(config)).check(config)
    return dataset


_ON_VAL = (
    " itself: each row is the best of its epochs there, and of more epochs there are more to choose"
)


@dataclass(frozen=True)
class Session:
    """What trains cells and hands in tables. `opened` makes one."""

    config: Config
    run: Run
    tracker: Tracker
    _cells: Cells
    _runs: CellRuns

    def train(self, wanted: Sequence[Cell], *, concurrent: int) -> dict[str, Record]:
        """Train the cells without a result, and return path -> result of all."""
        found = run_all(wanted, self._cells, concurrent=concurrent, ended=self._runs.add)
        self._runs.catch_up([record for record in found.values() if "error" not in record])
        return found

    def finish(self, name: str, made: Sequence[Table], more: Sequence[Grid] = ()) -> str:
        """Write the tables and hand them in; return them with where they are, for a person."""
        shown = results.write(self.run, name, made, more)
        results.log(self.tracker, self.run, name, made)
        where = f"tables: {self.run.path(FOLDER, name)}.md, .csv and .tex"
        return f"{shown}\n\n{where}\nMLflow: {tracking.how_to_see(self.config)}"


@contextmanager
def opened(config: Config, run: Run) -> Iterator[tuple[Session, dict[str, str]]]:
    """Hold the run for a comparison; give it with the fingerprints of what cells read.

    Raises RunError where the run has cells of other features, or another process works on it.
    """
    records = {stage: pipeline.recorded(run, stage) for stage in SHARED}
    inputs = {stage: record["fingerprint"] for stage, record in records.items()}
    cells = Cells(run)
    with run.locked():
        cells.claim(config, inputs, weights.of_inputs(records))
        handed_in = False
        try:
            with tracked(config, cells) as (tracker, runs):
                yield Session(config, run, tracker, cells, runs), inputs
                handed_in = True
        except TrackingError as error:  # as MLflow's run is closed
            if not handed_in:
                raise
            say(f"warning: {error}")


def metrics_of(config: Config, categories: Sequence[str]) -> list[Metric]:
    """Return recall at each rank of the average and, where there are several, each category."""
    names = list(dict.fromkeys(categories))
    of_all = [] if len(names) == 1 else names
    return [Metric(category, k) for category in (AVERAGE, *of_all) for k in config.evaluate.ks]


def described(config: Config, seeds: int, categories: Sequence[str], baseline: str) -> list[str]:
    """Return the notes below a table: what was measured, and what its columns are."""
    many = f"{seeds} seeds" if seeds > 1 else "one seed, hence no intervals"
    return [
        f"val, protocol {config.evaluate.protocol}, {len(categories):,} queries, {many} from "
        f"{config.seed} on; epochs chosen on {config.stage2.select_on}"
        f"{_ON_VAL if config.stage2.select_on == 'val' else ''}. Mean ± standard deviation "
        "[95% interval over seeds].",
        f"Δ: to {baseline}, in points, paired by seed and query, [95% interval over both]; "
        "p after Holm's correction.",
    ]


def is_fashioniq(config: Config) -> bool:
    """Tell whether the published figures are of this data set and these ranks."""
    from raycd.compare.published import CATEGORIES, KS

    whole = set(config.data.categories) == set(CATEGORIES)
    return config.data.format == "fashioniq" and whole and {*KS} <= {*config.evaluate.ks}
