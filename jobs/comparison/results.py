"""From the results of cells to tables: a table for each form and variant, and the files of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.comparison.cells import FOLDER, Record
from jobs.comparison.plan import EPOCHS, FORMS, ORIGINAL, PSEUDO, TRIPLETS
from raycd.compare import Answers
from raycd.compare.lines import Method, Table, against
from raycd.compare.writing import Grid, csv_text, grid
from raycd.errors import RunError, TrackingError
from raycd.evaluate import Metric
from raycd.progress import say
from raycd.run import Run
from raycd.runtime.record.tracking import Tracker

ENDINGS = ("md", "tex", "csv")
FAILED = "Failed and left out"
TITLES = {ORIGINAL: "without pseudo triplets", PSEUDO: "with pseudo triplets"}


@dataclass(frozen=True)
class WantedRow:
    """A row of one table: whose records make it."""

    name: str
    form: str
    variant: str
    """Both empty where nothing trains: the row is in every table."""
    paths: Mapping[int, str]
    """Seed -> cell; of a row that trains nothing one cell, under any seed."""
    epochs: int = 0

    @property
    def title(self) -> str:
        """Name the row among those of all tables."""
        return f"{self.name} {TITLES[self.variant]}" if self.form else self.name

    @property
    def is_trained(self) -> bool:
        """Tell whether seeds change it."""
        return bool(self.form)


def method(
    wanted: WantedRow, found: Mapping[str, Record], categories: Sequence[str]
) -> Method | None:
    """Return a row's answers and figures; None where all of its cells have failed."""
    records = {
        seed: found[path] for seed, path in wanted.paths.items() if "error" not in found[path]
    }
    if not records:
        return None
    rows = list(records.values())
    return Method(
        wanted.name,
        Answers.of(
            [row["ranks"] for row in rows], categories, list(records) if wanted.is_trained else None
        ),
        parameters=rows[0]["parameters"],
        epochs=wanted.epochs,
        triplets=rows[0]["seen"],
        seconds=sum(row["seconds"] for row in rows) / len(rows),
        failed=len(wanted.paths) - len(rows),
    )


def tables(
    wanted: Sequence[WantedRow],
    found: Mapping[str, Record],
    categories: Sequence[str],
    metrics: Sequence[Metric],
    baseline: str,
    notes: Sequence[str] = (),
) -> list[Table]:
    """Return a table for each form and variant, then what pseudo triplets bring in each form.

    `notes` stand below those of forms and variants, with what has failed.

    Where both forms of a variant are the same trainings there is one table of both. Raises RunError
    where all cells have failed.
    """
    every = failures(wanted, found)
    methods = {id(row): method(row, found, categories) for row in wanted}
    check_trained(methods.values(), every)
    still = [one for row in wanted if not row.is_trained and (one := methods[id(row)])]
    made: list[Table] = []
    shown: dict[tuple[str, str], list[WantedRow]] = {}
    for row in wanted:
        if row.is_trained:
            shown.setdefault((row.variant, row.form), []).append(row)
    for (variant, form), rows in shown.items():
        other = shown.get((variant, EPOCHS if form == TRIPLETS else TRIPLETS), [])
        same = [row.paths for row in rows] == [row.paths for row in other]
        if same and form == TRIPLETS:
            continue
        own = still + [one for row in rows if (one := methods[id(row)])]
        title = FORMS[form] if not same else "at equal epochs, which are equal triplets seen"
        found_baseline = next((one for one in own if one.name == baseline), None)
        beside = {one.name: found_baseline for one in own if found_baseline is not None}
        lines = against(own, beside, metrics)
        key = f"{form}-{variant}"
        heading = f"{title.capitalize()}, {TITLES[variant]}"
        failed = failures([*rows, *(row for row in wanted if not row.is_trained)], found)
        made.append(Table(key, heading, metrics, lines, [*notes, *failed]))
    return made + _gains(shown, methods, metrics, found)


def check_trained(methods: Iterable[Method | None], failed: Sequence[str]) -> None:
    """Raise RunError where no row is left that was trained; `failed` says why."""
    if not any(one is not None and one.is_trained for one in methods):
        raise RunError(
            "every training of the comparison has failed",
            got=failed[0] if failed else "no training",
            do="fix it, then run the same command again",
        )


def _gains(
    shown: Mapping[tuple[str, str], Sequence[WantedRow]],
    methods: Mapping[int, Method | None],
    metrics: Sequence[Metric],
    found: Mapping[str, Record],
) -> list[Table]:
    """Return for each form a table of every row with pseudo triplets beside itself without."""
    made = []
    for form, title in FORMS.items():
        without = {row.name: methods[id(row)] for row in shown.get((ORIGINAL, form), [])}
        pairs = [
            (replace(own, name=row.name), replace(base, name=f"{row.name}, {TITLES[ORIGINAL]}"))
            for row in shown.get((PSEUDO, form), [])
            if (own := methods[id(row)]) and (base := without.get(row.name))
        ]
        if pairs:
            lines = against(
                [own for own, _ in pairs], {own.name: base for own, base in pairs}, metrics
            )
            heading = f"What pseudo triplets bring, {title}: each row beside itself without them"
            rows = [row for v in (ORIGINAL, PSEUDO) for row in shown[v, form]]
            made.append(Table(f"{form}-gain", heading, metrics, lines, failures(rows, found)))
    return made


def failures(wanted: Sequence[WantedRow], found: Mapping[str, Record]) -> list[str]:
    """Return a sentence for each cell that has failed; it begins with FAILED."""
    said: dict[str, str] = {}
    for row in wanted:
        for seed, path in row.paths.items():
            if "error" in found[path]:
                said[path] = f"{FAILED}: {row.title}, seed {seed}: {in_line(found[path]['error'])}"
    return list(said.values())


def in_line(error: object) -> str:
    """Return an error in a line, cut to 200 characters."""
    return " ".join(str(error).split())[:200]


def write(run: Run, name: str, made: Sequence[Table], more: Sequence[Grid] = ()) -> str:
    """Write <run>/compare/<name>.md, .tex and .csv, and return the Markdown."""
    grids = [*map(grid, made), *more]
    markdown = "\n\n".join(one.markdown() for one in grids)
    latex = "\n\n".join(one.latex() for one in grids)
    texts = (f"{markdown}\n", f"{latex}\n", csv_text(made))
    for ending, text in zip(ENDINGS, texts, strict=True):
        run.write_bytes(f"{FOLDER}/{name}.{ending}", text.encode())
    return markdown


def log(tracker: Tracker, run: Run, name: str, made: Sequence[Table]) -> None:
    """Hand the tables and their means and differences in; without a server say where they are."""
    numbers: dict[str, dict[str, dict[str, Any]]] = {}
    for table in made:
        for line in (line for lines in table.lines for line in lines):
            own = {"mean": line.spread.mean}
            if line.difference is not None:
                own["difference"] = line.difference.mean
            category, slash, measure = str(line.metric).rpartition("/")
            of_method = numbers.setdefault(table.key, {}).setdefault(line.method.name, {})
            (of_method.setdefault(category, {}) if slash else of_method)[measure] = own
    try:
        tracker.log_metrics(numbers)
        for ending in ENDINGS:
            tracker.log_artifact(run.local(f"{FOLDER}/{name}.{ending}"))
    except TrackingError as error:
        say(f"warning: {error}\nwarning: the tables are in {run.path(FOLDER)}")
