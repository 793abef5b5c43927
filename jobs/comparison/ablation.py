"""The paper's Table 2: what fine-tuning, pseudo triplets and bilinear pooling add, with seeds.

Three runs stand beside the run itself: <name>-text, <name>-image and <name>-both, named after what
stage 1 fine-tunes. Each trains its encoder once, with the run's own seed. The heads of stage 2 are
cells of <name>-both, trained with as many seeds as asked for on the same features and pseudo
triplets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.comparison import results, session
from jobs.comparison.cells import Cell
from jobs.comparison.plan import EPOCHS, ORIGINAL, PSEUDO, Entry
from jobs.comparison.results import WantedRow
from raycd.compare import Answers, published
from raycd.compare.lines import Method, Table, against
from raycd.compare.writing import Grid
from raycd.config import Config, cli
from raycd.errors import ConfigError
from raycd.evaluate import AVERAGE, Metric
from raycd.model import fusion
from raycd.runtime import cluster, pipeline, precision
from raycd.runtime.evaluate import evaluation
from raycd.runtime.stages import tasks
from raycd.runtime.stages.context import Context
from tune.trial import Tables

NAME, FULL = "ablation", "CLIP-CD"
STAGE2: Mapping[str, tuple[str, str]] = {
    "w/o Pseudo Data": ("clip_cd", ORIGINAL),
    "w/o Bilinear": ("combiner", PSEUDO),
    FULL: ("clip_cd", PSEUDO),
}


def run(config: Config, *, seeds: int, concurrent: int = 0) -> tuple[str, Table]:
    """Train what is missing and write the tables; return them for a person, and their numbers."""
    cli.at_least("--seeds", seeds, 1)
    if config.stage1.finetune == "lora":
        raise ConfigError(
            "the ablation's rows fine-tune all weights of text, image or both",
            got="stage1.finetune lora",
            do="give --stage1.finetune both",
        )
    both = _named(config, "both")
    session.checked(both)
    with cluster.connected(config.compute):
        tuned = {what: _context(_named(config, what), "embed") for what in ("text", "image")}
        context = _context(both, "mine")
        tables = Tables.of(context, splits=("train", "selection", "val"))
        categories = tables.dataset.triplets_of("val")["category"].to_pylist()
        with session.opened(both, context.run) as (work, inputs):
            rows, cells = _stage2(
                precision.settled(both), range(config.seed, config.seed + seeds), tables, inputs
            )
            found = work.train(cells, concurrent=concurrent)
            methods = [
                _sum("w/o FT", context, "zero_shot"),
                _sum("w/ FT-Text", tuned["text"], "embed"),
                _sum("w/ FT-Image", tuned["image"], "embed"),
                _sum("w/ FT-Both", context, "embed"),
            ]
            trained = [results.method(row, found, categories) for row in rows]
            failed = results.failures(rows, found)
            results.check_trained(trained, failed)
            methods += [method for method in trained if method is not None]
            full = next((method for method in methods if method.name == FULL), None)
            lines = against(
                methods,
                {method.name: full for method in methods if full is not None},
                session.metrics_of(both, categories),
            )
            notes = session.described(both, seeds, categories, FULL)
            notes += [
                "All heads train the same epochs, as in the paper: with pseudo triplets they see "
                "more triplets, as the column says."
            ]
            notes += ["The rows of stage 1 are sums of features: nothing of them varies by seed."]
            table = Table(
                NAME,
                "Ablation (the paper's Table 2)",
                session.metrics_of(both, categories),
                lines,
                [*notes, *failed],
            )
            beside = [_published(table)] if session.is_fashioniq(both) else []
            return work.finish(NAME, [table], beside), table


def _named(config: Config, finetune: str) -> Config:
    """Return the configuration of the run that fine-tunes this."""
    values = config.model_dump()
    values["name"] = f"{pipeline.run_name(config)}-{finetune}"
    values["stage1"]["finetune"] = finetune
    values["stage2"]["head"] = "sum"  # it asks nothing of the encoder
    return Config.model_validate(values)


def _context(config: Config, until: str) -> Context:
    return Context(config, pipeline.run(config, until=until).run)


def _stage2(
    config: Config, seeds: Sequence[int], tables: Tables, inputs: Mapping[str, str]
) -> tuple[list[WantedRow], list[Cell]]:
    """Return the rows of stage 2 and their cells, seed by seed."""
    rows = []
    cells = []
    for name, (head, variant) in STAGE2.items():
        own = Entry(name, head, {}).config(config, variant)
        paths = {}
        for seed in seeds:
            seeded = own.model_copy(update={"seed": seed})
            cells.append(Cell(f"{name} seed {seed}", tables, seeded, inputs))
            paths[seed] = cells[-1].path
        rows.append(WantedRow(name, EPOCHS, variant, paths, own.stage2.epochs))
    return rows, sorted(cells, key=lambda cell: cell.config.seed)


def _sum(name: str, context: Context, stage: str) -> Method:
    """Return the answers of the sum of the features that a stage of a run has written."""
    ranks = tasks.run(_ranks, context, stage, gpu=True)
    categories = context.dataset.triplets_of("val")["category"].to_pylist()
    return Method(name, Answers.of([ranks], categories, None))


def _ranks(context: Context, stage: str) -> list[int | None]:
    images, texts = context.val_features(stage)
    total = fusion.create(fusion.HeadConfig("sum", images.values.shape[1]))
    asked = evaluation.variant(stage, total, images, texts, context.config)
    found = evaluation.ask(context.dataset, asked, context.config)
    triplets = context.dataset.triplets_of("val")
    return [found.ranks[triplet] for triplet in triplets["triplet_id"].to_pylist()]


def _published(table: Table) -> Grid:
    """Return the paper's Table 2 beside ours."""
    ours = {lines[0].method.name: lines[0].method for lines in table.lines}
    rows = []
    for name, figures in published.table2().items():
        means = [
            f"{100 * ours[name].answers.spread(Metric(AVERAGE, k)).mean:.2f}"
            if name in ours
            else "–"
            for k in published.KS
        ]
        rows.append([name, *(f"{figure:.2f}" for figure in figures), *means])
    heads = [f"R@{k} {whose}" for whose in ("(published)", "(ours)") for k in published.KS]
    return Grid("The paper's Table 2 as it is printed, and ours", ["method", *heads], rows)
