"""The comparison of heads (the paper's Table 1): one encoder, all heads, two forms."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from jobs.comparison import results, session
from jobs.comparison.cells import Cell
from jobs.comparison.choice import make_choice
from jobs.comparison.plan import (
    EPOCHS,
    FORMS,
    ORIGINAL,
    PSEUDO,
    TRIPLETS,
    Entry,
    Plan,
    make_plan,
)
from jobs.comparison.results import WantedRow
from raycd.compare import published
from raycd.compare.lines import Method, Table
from raycd.compare.writing import Grid
from raycd.config import Config
from raycd.data.schema import Dataset
from raycd.model import fusion
from raycd.runtime import cluster, pipeline, precision
from raycd.runtime.stages.context import Context
from raycd.runtime.stages.fresh import fresh_head
from raycd.train.batches import epochs_to_see, triplets_seen
from tune.trial import Tables

NAME = "comparison"
_SUM = Entry("sum", "sum", {})  # it fits every encoder


def run(config: Config, flags: argparse.Namespace) -> str:
    """Train the cells that are missing and write the tables; return them for a person."""
    plan = make_plan(
        config,
        heads=flags.heads,
        settings=flags.set,
        variants=flags.variants,
        seeds=flags.seeds,
        baseline=flags.baseline,
    )
    choice = make_choice(flags.choose, config, plan)
    dataset = session.checked(config)
    with cluster.connected(config.compute):
        plan = fitted(config, plan)
        if choice is not None:
            choice.check(plan)
        tables = _tables(config, plan, dataset)
        categories = tables.dataset.triplets_of("val")["category"].to_pylist()
        with session.opened(config, pipeline.run_folder(config)) as (work, inputs):
            config = precision.settled(config)
            train = partial(work.train, concurrent=flags.concurrent)
            if choice is not None:
                trainings = tried(config, plan.seeds, choice.variant, tables, inputs)
                plan = choice.made(config, plan, trainings, train)
            wanted, cells = cells_of(config, plan, tables, inputs)
            found = train(cells)
            made = results.tables(
                wanted,
                found,
                categories,
                session.metrics_of(config, categories),
                plan.baseline,
                [
                    *session.described(config, len(plan.seeds), categories, plan.baseline),
                    *plan.notes,
                ],
            )
            beside = _published(config, made) if session.is_fashioniq(config) else []
            return work.finish(NAME, made, beside)


def fitted(config: Config, plan: Plan) -> Plan:
    """Run the stage `encoder`, and return the plan of the rows that have what they need of it.

    Raises what `Plan.fitted` does, before anything is trained.
    """
    run = pipeline.run(_SUM.config(config, PSEUDO), until="encoder").run
    return plan.fitted(lambda entry: fresh_head(entry.config(config, PSEUDO), run))


def _tables(config: Config, plan: Plan, dataset: Dataset | None) -> Tables:
    """Run the stages that cells read, once for each need of a head, and return their tables."""
    rows = {frozenset[str](): _SUM}
    for entry in (*plan.untrained, *plan.entries):
        rows.setdefault(fusion.head_class(entry.head).needs, entry)
    for entry in rows.values():
        own = entry.config(config, PSEUDO)
        run = pipeline.run(own, until="mine").run
    return Tables.of(
        Context(own, run, _dataset=dataset),
        splits=("train", "selection", "val"),
        heads=[entry.head for entry in rows.values()],
    )


@dataclass(frozen=True)
class _Row:
    entry: Entry
    variant: str
    config: Config
    counts: tuple[int, int]
    """Original and pseudo triplets."""


def cells_of(
    config: Config,
    plan: Plan,
    tables: Tables,
    inputs: Mapping[str, str],
) -> tuple[list[WantedRow], list[Cell]]:
    """Return the rows of all tables, and their cells, seed by seed: what is there of a comparison
    that was stopped is complete for its first seeds.
    """
    wanted: list[WantedRow] = []
    cells: list[Cell] = []
    for entry in plan.untrained:
        own = entry.config(config, plan.variants[0])
        cells.append(Cell(entry.name, tables, own, inputs, is_trained=False))
        wanted.append(WantedRow(entry.name, "", "", {config.seed: cells[-1].path}))
    rows = [_row(config, entry, v, tables) for v in plan.variants for entry in plan.entries]
    most = max(
        (triplets_seen(r.config.stage2, r.config.stage2.epochs, *r.counts) for r in rows), default=0
    )
    for form in FORMS:
        for row in rows:
            epochs = row.config.stage2.epochs
            if form == TRIPLETS:
                epochs = epochs_to_see(row.config.stage2, most, *row.counts)
            own_cells = _over_seeds(
                row.config, plan.seeds, epochs, f"{row.entry.name} {row.variant}", tables, inputs
            )
            cells += own_cells.values()
            paths = {seed: cell.path for seed, cell in own_cells.items()}
            wanted.append(WantedRow(row.entry.name, form, row.variant, paths, epochs))
    return wanted, sorted(cells, key=lambda one: one.config.seed)


def tried(
    config: Config, seeds: Sequence[int], variant: str, tables: Tables, inputs: Mapping[str, str]
) -> Callable[[Entry], dict[int, Cell]]:
    """Return what gives the trainings by which a row chooses, those of equal epochs."""

    def of(entry: Entry) -> dict[int, Cell]:
        own = entry.config(config, variant)
        name = " ".join([entry.name, variant, *(f"{k}={v}" for k, v in entry.settings.items())])
        return _over_seeds(own, seeds, own.stage2.epochs, name, tables, inputs)

    return of


def _over_seeds(
    config: Config,
    seeds: Sequence[int],
    epochs: int,
    name: str,
    tables: Tables,
    inputs: Mapping[str, str],
) -> dict[int, Cell]:
    stage2 = config.stage2.model_copy(update={"epochs": epochs})
    return {
        seed: Cell(
            f"{name} {epochs} epochs seed {seed}",
            tables,
            config.model_copy(update={"stage2": stage2, "seed": seed}),
            inputs,
        )
        for seed in seeds
    }


def _row(config: Config, entry: Entry, variant: str, tables: Tables) -> _Row:
    own = entry.config(config, variant)
    original, pseudo = tables.counts(own)
    return _Row(entry, variant, own, (original, pseudo if own.stage2.pseudo else 0))


def _published(config: Config, made: Sequence[Table]) -> list[Grid]:
    """Return the paper's Table 1 beside ours at equal epochs, with pseudo triplets if there are."""
    tables = {table.key: table for table in made}
    own = tables.get(f"{EPOCHS}-{PSEUDO}") or tables[f"{EPOCHS}-{ORIGINAL}"]
    ours: list[Method] = [lines[0].method for lines in own.lines]
    grid = published.beside(ours, config.evaluate.protocol)
    return [replace(grid, notes=[*grid.notes, f"Ours: {own.title[0].lower()}{own.title[1:]}."])]
