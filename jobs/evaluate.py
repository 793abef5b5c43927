"""Measures the recall of pre-trained CLIP, fine-tuned CLIP and fusion head, after earlier stages.

    python jobs/evaluate.py --preset demo
    python jobs/evaluate.py --preset demo --evaluate.ks 1,5,10,50    other ranks: nothing is trained
    python jobs/evaluate.py --preset demo --protocol all             the protocols side by side
    python jobs/evaluate.py --preset demo --per-query queries.parquet

Through the running service, query by query (the key, if it wants one, in RAYCD_API_KEY):

    python jobs/evaluate.py --preset demo --endpoint http://127.0.0.1:8000

A trained bundle on a data set that it was not trained on, and answers for an evaluation server:

    python jobs/evaluate.py --bundle runs/cirr/bundle --data.format circo --data.root /data/CIRCO
    python jobs/evaluate.py --preset cirr --data.root /data/cirr --submission answers
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raycd import durable
from raycd.config import Config, Protocol, cli
from raycd.errors import ConfigError, called

if TYPE_CHECKING:
    from raycd.data.schema import Dataset
    from raycd.runtime.evaluate.evaluation import AskedQueries

ALL = "all"


def flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument
    own(
        "--protocol",
        metavar="NAME",
        help="Instead of evaluate.protocol, without another run: one of them, or all.",
    )
    own(
        "--per-query",
        metavar="FILE",
        help="Write ranks and the first 50 images of each query to this Parquet file.",
    )
    own("--endpoint", metavar="URL", help="Ask this service, query by query.")
    own("--gallery", default="", metavar="NAME", help="Which of its galleries; else its default.")
    own(
        "--bundle",
        metavar="FOLDER",
        help="Measure this bundle on the data set of the settings; nothing is trained.",
    )
    own(
        "--submission",
        metavar="FOLDER",
        help="Write the answers to the test split (cirr, circo) for its evaluation server.",
    )


def main(options: cli.Options) -> None:
    asked, config = options.flags, options.config
    if asked.endpoint and (asked.bundle or asked.submission):
        raise ConfigError(
            "--endpoint asks a service",
            got="--bundle or --submission beside it",
            do="leave one of them out",
        )
    if asked.gallery and not asked.endpoint:
        raise ConfigError(
            "--gallery names a gallery of a service", got=asked.gallery, do="give --endpoint, too"
        )
    if asked.submission and (asked.protocol or asked.per_query):
        raise ConfigError(
            "--submission answers the test split, whose right answers only its server knows",
            got="--protocol or --per-query beside it",
            expected="--bundle alone beside it",
            do="leave one of them out: --protocol and --per-query measure val",
        )
    if asked.per_query:
        _check_path("--per-query", asked.per_query, "file")
    if asked.submission:
        _check_path("--submission", asked.submission, "folder")
    if asked.submission:
        submit(config, asked.bundle, Path(asked.submission))
    elif asked.protocol or asked.per_query or asked.endpoint or asked.bundle:
        measure(config, asked)
    else:
        from raycd.report.table import final_table
        from raycd.runtime import pipeline

        run = pipeline.run(config, until="evaluate").run
        print(final_table(pipeline.recorded(run, "evaluate")))


def _check_path(option: str, name: str, what: str) -> None:
    """Raise ConfigError where nothing can be written there, before anything is measured."""
    path, is_folder = cli.local(option, name, what), what == "folder"
    there = next(one for one in (path, *path.absolute().parents) if one.exists())
    fits = there.is_dir() if is_folder else path.parent.is_dir() and not path.is_dir()
    if not fits:
        raise ConfigError(
            f"{option} cannot be written there",
            got=name,
            expected="a folder" if is_folder else "a file in a folder that is there",
        )


def measure(config: Config, asked: argparse.Namespace) -> None:
    """Print a table of variants and protocols, and write single queries where asked for."""
    import pyarrow.parquet as pq

    from raycd.evaluate import per_query
    from raycd.report.table import final_table
    from raycd.runtime.evaluate import evaluation

    chosen = protocols(asked.protocol, config)
    top = per_query.TOP if asked.per_query else 0
    dataset, found = answers(config, asked, chosen, top)
    print(final_table(evaluation.metrics(found)))
    images = max(sum(map(len, one.found.missing_gallery.values())) for one in found)
    queries = max(sum(map(len, one.found.missing_queries.values())) for one in found)
    if images or queries:
        print(
            f"warning: {images:,} images of the gallery are missing and not searched, and "
            f"{queries:,} queries, whose reference or all of whose targets are, count as not found"
        )
    if asked.per_query:
        both = config.evaluate.captions == "both_orders"
        with durable.replace_file(Path(asked.per_query)) as fresh:
            pq.write_table(per_query.table(dataset, "val", found, both_orders=both), fresh)
        print(f"\nqueries: {asked.per_query}")


def answers(
    config: Config, asked: argparse.Namespace, chosen: list[Protocol], top: int
) -> tuple[Dataset, list[AskedQueries]]:
    """Return the data set, and what each variant found under each protocol."""
    from raycd.client import Client
    from raycd.evaluate import answerable
    from raycd.runtime import cluster, pipeline
    from raycd.runtime.evaluate import elsewhere, endpoint, evaluation
    from raycd.runtime.stages.context import Context

    if asked.endpoint:
        _drawn(config)
        dataset = Context(config, pipeline.run_folder(config)).dataset
        answerable(dataset.queries("val"), "val")  # before anything is asked
        key = os.environ.get("RAYCD_API_KEY")  # never an option: others can read those
        with Client(asked.endpoint, api_key=key, gallery=asked.gallery) as client:
            return dataset, [
                evaluation.AskedQueries(
                    p, client.url, endpoint.ask(client, dataset, config, p, top=top)
                )
                for p in chosen
            ]
    if not asked.bundle:
        context = Context(config, pipeline.run(config, until="evaluate").run)
        dataset = context.dataset
        with cluster.connected(config.compute):
            return dataset, evaluation.ask_run(context, chosen, top)
    dataset = elsewhere.dataset(config, "val", _drawn(config))
    answerable(dataset.queries("val"), "val")  # before anything is embedded
    model = elsewhere.Model.of_bundle(asked.bundle)
    variants = elsewhere.variants(model, dataset, "val", config)
    return dataset, [
        evaluation.AskedQueries(p, v.name, evaluation.ask(dataset, v, config, protocol=p, top=top))
        for p in chosen
        for v in variants
    ]


def _drawn(config: Config) -> str | None:
    """Return where a run has drawn the demo data; None for other data.

    Raises ConfigError where it has not.
    """
    from raycd.runtime import pipeline

    if config.data.format != "synthetic":
        return None
    run = pipeline.run_folder(config)
    if run.record("catalogue") is None:
        raise ConfigError(
            "the queries are not there: nothing has drawn the demo data yet",
            got=run.root,
            expected="the run that has",
            do=f"run {called('jobs/train.py')} with the same settings first",
        )
    return run.path("catalogue")


def protocols(name: str | None, config: Config) -> list[Protocol]:
    """Return the protocols that were asked for. Raises ConfigError for an unknown one."""
    from raycd.runtime.evaluate.evaluation import PROTOCOLS

    if name is None:
        return [config.evaluate.protocol]
    found = [protocol for protocol in PROTOCOLS if name in (ALL, protocol)]
    if not found:
        raise ConfigError(
            "there is no such protocol", got=name, expected=f"{ALL} or {', '.join(PROTOCOLS)}"
        )
    return found


def submit(config: Config, folder: str | None, out: Path) -> None:
    """Write the answers to the test split into `out`."""
    from raycd.evaluate import submission
    from raycd.runtime import pipeline
    from raycd.runtime.evaluate import elsewhere
    from raycd.runtime.stages.context import Context, own_device

    submission.check_format(config.data.format)
    make, mask_reference = submission.FORMATS[config.data.format]
    dataset = elsewhere.dataset(config, "test")  # a mistake ends it before anything is trained
    if folder is not None:
        model = elsewhere.Model.of_bundle(folder)
    else:
        model = elsewhere.Model.of_run(Context(config, pipeline.run(config, until="stage2").run))
    *_, head = elsewhere.variants(model, dataset, "test", config)
    ranked = submission.rank(
        dataset,
        "test",
        head.images,
        head.query,
        mask_reference=mask_reference,
        batch_size=config.evaluate.batch_size,
        device=own_device(config),
        rerank=head.rerank,
    )
    out.mkdir(parents=True, exist_ok=True)
    for name, answer in make(ranked).items():
        with durable.replace_file(out / name) as fresh:
            fresh.write_text(json.dumps(answer), encoding="utf-8")
        print(f"{len(ranked.gallery)} queries: {out / name}")
    if ranked.unasked or ranked.missing:
        print(
            f"warning: {len(ranked.missing)} images of the gallery are missing, and "
            f"{len(ranked.unasked)} queries are answered without their reference"
        )


def program(argv: Sequence[str] | None = None, prog: str = "jobs/evaluate.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main,
        argv,
        prog=prog,
        description="Measure the recall of every variant on val.",
        flags=flags,
    )


if __name__ == "__main__":
    sys.exit(program())
