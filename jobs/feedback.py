"""Turns what people did with results into triplets, beside those of a data set: a manifest to train
on.

    python jobs/feedback.py --preset demo --gallery runs/demo/gallery.sqlite --out feedback
    python jobs/train.py --preset demo --name fed --data.format manifest --data.root feedback

The service keeps searches and events in the database of its gallery where it is started with
--events; docs/feedback.md says what is made of them.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raycd import __version__, progress
from raycd.config import Config, DataConfig, cli, settings
from raycd.data.schema import Dataset
from raycd.durable import replace_folder
from raycd.errors import ConfigError, DataError, called
from raycd.feedback import manifest, propensity, triplets
from raycd.feedback.propensity import How, Propensity
from raycd.feedback.records import LoggedSession, sessions
from raycd.gallery_db.stored import StoredGallery

PROVENANCE, HELD_BACK = "feedback.json", "held_back"
CORRECTIONS: tuple[How, ...] = ("auto", "slice", "model", "none")


def flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument
    own("--gallery", default="", metavar="URL", help="A SQLite file or a postgresql:// URL.")
    own("--pictures", default="", metavar="ROOT", help="Where uploaded pictures lie.")
    own(
        "--out",
        default="",
        metavar="FOLDER",
        help="Where the tables go: a new folder, or an older one of this job, which is replaced.",
    )
    rules(parser)


def rules(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which triplets feedback makes."""
    own = parser.add_argument
    own("--since", default="", metavar="DATE", help="Only what happened from then on: 2026-11-01.")
    own(
        "--support",
        type=int,
        default=2,
        metavar="N",
        help="Least searches of one query in which people liked the same target. (%(default)s)",
    )
    own(
        "--correct",
        choices=CORRECTIONS,
        default="auto",
        help="What positions do to clicks: measured on the randomised slice, estimated by the "
        "examination model, or not corrected; auto takes the slice where it has enough clicks.",
    )
    own(
        "--held-back",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="Queries that are not trained on, to measure with. (%(default)s)",
    )
    own(
        "--negatives",
        type=int,
        default=triplets.NEGATIVES,
        metavar="N",
        help="Most hard negatives of a triplet; none where the loss of stage2.head takes none. "
        "(%(default)s)",
    )


def main(options: cli.Options) -> None:
    asked = options.flags
    asked.gallery, asked.pictures = settings.addresses(asked.gallery, asked.pictures)
    if not asked.gallery or not asked.out:
        raise ConfigError("feedback takes --gallery and --out", do="give both")
    out = cli.local("--out", asked.out)
    made = make(options.config, asked, out)
    for line in lines(made):
        print(line)
    print(f"manifest:  {out}")
    data = data_of(options.config.data, out, made)
    given = " ".join(f"--data.{name} {value}" for name, value in data.items())
    print(
        f"next:      {called('jobs/train.py')} with your settings and --name NAME {given} "
        "--compose.when never"
    )


def make(config: Config, asked: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Write the manifest, that of the held back queries in it, and return its provenance.

    Raises:
        ConfigError: An option is impossible.
        DataError: There is no feedback, or no triplet can be made of it, or those that the run has
            composed are not there.
        GalleryError: The gallery cannot be read.
    """
    out = out.absolute()
    if out.exists() and not _is_replaceable(out):
        raise ConfigError(
            "--out holds other things than triplets from feedback, and would be replaced",
            got=out,
            expected="a new or an empty folder, or one that this job has written",
            do="give another --out",
        )
    since, negatives = _seconds(asked.since), _negatives(config, asked.negatives)
    cli.at_least("--support", asked.support, 1)
    if not 0 <= asked.held_back < 1:
        raise ConfigError(
            "--held-back: impossible value",
            got=asked.held_back,
            expected="a share from 0 to below 1",
        )
    with StoredGallery.open(asked.gallery, asked.pictures) as stored:
        found, version = _sessions(stored, since), stored.gallery_db.version()
        images = {
            row.image_id: manifest.Known(row.categories, stored.locate(row.path), row.attributes)
            for row in stored.rows()
        }
    base = _base(config)
    positions = propensity.estimate(found, asked.correct)
    learned = triplets.learn(
        *(found, positions.values),
        support=asked.support,
        texts=_known_texts(base),
        negatives=negatives,
    )
    placed = manifest.place(learned, images, base.triplets_of("val"), held_back=asked.held_back)
    if not placed.train:
        raise DataError(
            "the feedback makes no triplet to train on",
            got=f"{len(found):,} searches, {sum(bool(one.liked) for one in found):,} with a result "
            f"that somebody liked; left out: {_shown(placed.left_out) or 'none'}",
            expected=f"a target that people liked in {asked.support} searches of one reference and "
            "text (--support)",
            do="lower --support, or wait for more events",
        )
    made = _provenance(found, positions, placed, asked, version)
    made |= {"negatives": negatives, "val": len(base.triplets_of("val"))}
    out.parent.mkdir(parents=True, exist_ok=True)
    with replace_folder(out) as folder:
        manifest.write(manifest.with_feedback(base, placed.train, images, placed.held_back), folder)
        (folder / HELD_BACK).mkdir()
        manifest.write(manifest.held_back(placed.held_back, images), folder / HELD_BACK)
        (folder / PROVENANCE).write_text(json.dumps(made, indent=1), encoding="utf-8")
    return made


def _is_replaceable(out: Path) -> bool:
    return out.is_dir() and ((out / PROVENANCE).is_file() or not any(out.iterdir()))


def data_of(data: DataConfig, folder: Path, made: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of `data` that read a manifest of this job, of the provenance `made`.

    Its texts are worded as those of the data set that it was made of, `data`.
    """
    from raycd.data.read import wording

    return {
        # Without val triplets a manifest is refused
        "format": "catalogue" if made.get("val") == 0 else "manifest",
        "root": str(folder.absolute()),
        "triplets": manifest.TRIPLETS_FILE,
        "gallery": manifest.GALLERY_FILE,
        "captions": "raw" if wording(data).raw else "cleaned",
    }


def lines(made: dict[str, Any]) -> list[str]:
    """Return what a person wants to know of a provenance."""
    values = made["propensity"]["values"]
    shown = "" if values is None else ": " + " ".join(f"{value:.2f}" for value in values[:10])
    return [
        f"searches:  {made['searches']:,}, {made['liked']:,} with a result that somebody liked",
        f"positions: {made['propensity']['method']}{shown}",
        f"triplets:  {made['triplets']:,} to train on, {made['held_back']:,} held back",
        f"left out:  {_shown(made['left_out']) or 'none'}",
    ]


def _sessions(stored: StoredGallery, since: float) -> list[LoggedSession]:
    from raycd.gallery_db import events

    gallery_db = stored.gallery_db
    done = events.events(gallery_db, since, without=["impression"])  # most, and nothing is learnt
    found = list(sessions(events.searches(gallery_db, since), done))
    if not found:
        raise DataError(
            "the gallery has no feedback",
            expected="searches and events, which the service keeps with --events",
            do="start the service with --events, or check --since",
        )
    return found


def _negatives(config: Config, most: int) -> int:
    """Return how many hard negatives a triplet may have."""
    from raycd.model import fusion

    cli.at_least("--negatives", most, 0)
    head = config.stage2.head
    if most and not fusion.head_class(head).takes_hard_negatives():
        progress.say(f"the loss of the head {head} takes no hard negatives: triplets have none")
        return 0
    return most


def _base(config: Config) -> Dataset:
    """Return the data set of the configuration, whose own triplets stay, or those composed."""
    import pyarrow.parquet as pq

    from raycd.data.folder import absolute
    from raycd.runtime import pipeline
    from raycd.runtime.stages import reading
    from raycd.runtime.stages.context import COMPOSED

    drawn = config.data.format == "synthetic"
    root = pipeline.run_folder(config).path("catalogue") if drawn else config.data.root
    found = reading.without_withheld(config, absolute(root))
    if not reading.composes(reading.fitted(config, found), found):
        return found
    run = pipeline.run_folder(config)
    if run.record("compose") is None:
        raise DataError(
            "the data set has no train triplets, and the run has composed none",
            got=f"run {run.root}",
            expected="that of the bundle that the users saw, with the stage compose",
            do="give its --name and --runs; or --compose.when never, to train on feedback alone",
        )
    table = pq.read_table(run.local("compose") / COMPOSED)
    there = reading.still_there(found, table)
    if gone := len(table) - len(there):
        progress.say(f"{gone:,} composed triplets are left out: their images are no longer there")
    return reading.with_composed(found, there)


def content(config: Config) -> str:
    """Return a hash of the data set that the triplets come to."""
    from raycd.data.read import content_hash

    return content_hash(_base(config), drawn=config.data.format == "synthetic")


def _known_texts(base: Dataset) -> dict[str, str]:
    """Return the texts of the data set by their hashes: a search may have kept the hash alone."""
    import hashlib

    texts = {text for captions in base.triplets["captions"].to_pylist() for text in captions}
    texts |= {base.wording.evaluation(own) for own in base.triplets["captions"].to_pylist()}
    return {hashlib.sha256(text.encode()).hexdigest(): text for text in texts}


def _provenance(
    found: Sequence[LoggedSession],
    positions: Propensity,
    placed: manifest.Placed,
    asked: argparse.Namespace,
    version: int,
) -> dict[str, Any]:
    times = [one.search.at for one in found]
    return {
        "raycd": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "from": _date(min(times)),
        "to": _date(max(times)),
        "searches": len(found),
        "liked": sum(bool(one.liked) for one in found),
        "bundles": dict(Counter(one.search.bundle for one in found)),
        "gallery_version": version,
        "propensity": positions._asdict(),
        "support": asked.support,
        "triplets": len(placed.train),
        "held_back": len(placed.held_back),
        "left_out": dict(placed.left_out),
    }


def _seconds(date: str) -> float:
    if not date:
        return 0.0
    try:
        found = datetime.fromisoformat(date)
    except ValueError as error:
        raise ConfigError(
            "--since is not a date", got=date, expected="2026-11-01 or 2026-11-01T08:00:00+01:00"
        ) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _shown(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items())


def program(argv: Sequence[str] | None = None, prog: str = "jobs/feedback.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main,
        argv,
        prog=prog,
        description="Make triplets of what people did with results.",
        flags=flags,
        again=cli.ANEW,
    )


if __name__ == "__main__":
    sys.exit(program())
