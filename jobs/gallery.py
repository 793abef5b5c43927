"""Check, back up and restore a live gallery, import into it, and forget encoders of the past.

    python jobs/gallery.py check --gallery runs/demo/gallery.sqlite
    python jobs/gallery.py backup --gallery runs/demo/gallery.sqlite --to /backups/monday
    python jobs/gallery.py restore --from /backups/monday --gallery runs/demo/gallery.sqlite
    python jobs/gallery.py import --gallery runs/demo/gallery.sqlite --from features
    python jobs/gallery.py forget --gallery runs/demo/gallery.sqlite --encoder 4228daf4878e --yes

All but restore may run while the service does. Without --gallery and --pictures these are those of
the service: RAYCD_SERVE__GALLERY and RAYCD_SERVE__PICTURES, where a URL may hold its password.
Exit codes: raycd/program.py; 2 is also that something is wrong with the gallery.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from raycd import progress
from raycd.config import cli, settings
from raycd.errors import ConfigError
from raycd.gallery_db import backup, check
from raycd.gallery_db.bulk import BatchColumns, Tally
from raycd.gallery_db.stored import StoredGallery
from raycd.progress import Bar

if TYPE_CHECKING:
    from raycd.data.catalogue import Labels

SHOWN = 5  # names of one kind


def main(argv: Sequence[str] | None = None, prog: str = "jobs/gallery.py") -> int:
    """Do what the command line says, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser(prog).parse_args(argv)
    again = cli.AGAIN if options.run is import_features else ""
    return cli.guard(lambda: _run(options), argv, again=again)


def _run(options: argparse.Namespace) -> int | None:
    options.gallery, options.pictures = settings.addresses(options.gallery, options.pictures)
    if not options.gallery:
        raise ConfigError(
            "no gallery is named", do=f"give --gallery, or set {settings.SERVICE}GALLERY"
        )
    code: int | None = options.run(options)
    return code


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Look after a live gallery.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("check", _check, "Check that database and pictures are whole; exit code 2 if not."),
        ("backup", _backup, "Copy database and pictures while the service runs."),
        ("restore", _restore, "Make a database and its pictures from a backup."),
        (
            "import",
            import_features,
            "Have the images and features of Parquet files in the gallery.",
        ),
        ("forget", _forget, "Remove the features of an encoder that is no longer used."),
    ):
        command = commands.add_parser(name, help=text, description=text)
        gallery = (
            "The new SQLite file." if name == "restore" else "A SQLite file or a postgresql:// URL."
        )
        command.add_argument("--gallery", default="", metavar="URL", help=gallery)
        command.add_argument(
            "--pictures",
            default="",
            metavar="ROOT",
            help="Where uploaded pictures lie. (beside the SQLite file)",
        )
        command.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        command.set_defaults(run=run)
        if name == "check":
            command.add_argument(
                "--mend",
                action="store_true",
                help="Remove pictures that nothing has named for an hour.",
            )
        elif name == "backup":
            command.add_argument(
                "--to", required=True, metavar="FOLDER", help="A new folder of this machine."
            )
        elif name == "restore":
            command.add_argument(
                "--from",
                dest="source",
                required=True,
                metavar="FOLDER",
                help="A backup on this machine.",
            )
        elif name == "import":
            _import_options(command)
        elif name == "forget":
            command.add_argument(
                "--encoder", required=True, metavar="FINGERPRINT", help="Or how it begins."
            )
            command.add_argument(
                "--yes", action="store_true", help="Do it; without, only say what would go."
            )
    return parser


def _import_options(command: argparse.ArgumentParser) -> None:
    own = command.add_argument
    own(
        "--from",
        dest="source",
        required=True,
        metavar="SOURCE",
        help="A folder that jobs/embed.py has written, a Parquet file, or a folder of such.",
    )
    own(
        "--encoder",
        default="",
        metavar="FINGERPRINT",
        help="Of the features, where SOURCE does not name it, or the gallery does not know it.",
    )
    own(
        "--category",
        action="append",
        default=[],
        metavar="NAME",
        help="Of images that have none in SOURCE; may repeat.",
    )
    own("--new", action="store_true", help="Make the gallery where there is none.")


def _check(options: argparse.Namespace) -> int:
    with StoredGallery.open(options.gallery, options.pictures) as stored:
        found = check.check(stored)
        removed = check.remove_orphans(stored, found) if options.mend else 0
    print(f"images:    {found.images:,} at version {found.version:,}")
    for fingerprint, count in found.encoders.items():
        print(f"encoder:   {fingerprint[:12]}, features of {count:,} images")
    print(f"pictures:  {found.named:,} named, {len(found.lost):,} of them not there")
    print(f"unnamed:   {len(found.orphans):,} pictures that no image names, {removed:,} removed")
    for fault in found.faults:
        print(f"wrong:     {fault}")
    if found.lost:
        print(f"wrong:     there is no picture of {_some(found.lost)}")
    return cli.EXIT_MISTAKE if found.faults or found.lost else 0


def _backup(options: argparse.Namespace) -> int | None:
    folder = cli.local("--to", options.to)
    with StoredGallery.open(options.gallery, options.pictures) as stored:
        saved = backup.save(stored, folder)
    if backup.DATABASE not in saved.files:
        print("database:  not copied: use pg_dump (docs/gallery.md)")
    else:
        print(f"database:  {saved.images:,} images at version {saved.version:,}")
    print(f"pictures:  {saved.pictures:,} copied and compared")
    if saved.elsewhere:
        print(
            f"elsewhere: {saved.elsewhere:,} images whose pictures the service does not keep: "
            "not copied"
        )
    if saved.lost:
        print(f"lost:      the gallery itself has no picture of {_some(saved.lost)}")
    print(f"backup:    {options.to}")
    return cli.EXIT_MISTAKE if saved.lost else None


def _restore(options: argparse.Namespace) -> None:
    folder = cli.local("--from", options.source)
    saved = backup.restore(folder, options.gallery, options.pictures)
    print(f"database:  {saved.images:,} images at version {saved.version:,}")
    print(f"pictures:  {saved.pictures:,} copied")
    print(f"next:      start the service with --gallery {options.gallery}")


def import_features(
    options: argparse.Namespace, labels: Mapping[str, Labels] | None = None
) -> None:
    """Have the images and features of `source` in the gallery, and say what that changed.

    `labels` are what is known of them, where the source does not say it.
    """
    from raycd.gallery_db import batches, sources  # they import torch

    source = sources.source(options.source)
    if labels:
        fitting, long = batches.fitting(labels)
        if long:
            progress.say(f"left out: {long:,} attributes of more than {batches.NAME} characters")
        source = sources.Labelled.over(source, fitting)
    with StoredGallery.open(options.gallery, options.pictures, create=options.new) as stored:
        gallery_db = stored.gallery_db
        encoder = stored.encoder_of(source.encoder, options.encoder)
        with Bar("check", total=source.images, unit="images") as bar:
            image_ids = []
            for batch in batches.ahead(batches.batches(source)):
                image_ids.append(batch["image_id"])
                bar.advance(len(batch))
            batches.check_once(image_ids)
        tally = Tally()
        with Bar("import", total=source.images, unit="images") as bar:
            columns = partial(BatchColumns.of, new=gallery_db.usual_categories())
            for rows in batches.ahead(map(columns, batches.batches(source, options.category))):
                tally = tally.plus(gallery_db.import_rows(rows, encoder))
                bar.advance(len(rows.image_ids))
        print(f"added:     {tally.added:,} images")
        print(f"replaced:  {tally.replaced:,}")
        print(f"unchanged: {tally.unchanged:,} that were in the gallery already")
        if source.left_out:
            counts = (f"{count:,} {reason}" for reason, count in source.left_out.items())
            print(f"left out:  without a feature: {', '.join(counts)}")
        print(f"encoder:   {encoder[:12]}, features of {source.dim} numbers")
        print(f"gallery:   {gallery_db.count():,} images at version {gallery_db.version():,}")


def _forget(options: argparse.Namespace) -> None:
    with StoredGallery.open(options.gallery, options.pictures) as stored:
        fingerprint, count = stored.removable_encoder(options.encoder)
        if not options.yes:
            raise ConfigError(
                f"nothing was forgotten yet: {count:,} features of encoder {fingerprint[:12]} "
                "would go",
                expected="a service that has changed to another encoder: one that still uses this "
                "encoder would not start again before jobs/index.py has encoded the whole gallery "
                "anew",
                do="see in /v1/info which encoder is used; to go on, give --yes",
            )
        count = stored.gallery_db.forget(fingerprint)
    print(f"forgotten: {count:,} features of encoder {fingerprint[:12]}")


def _some(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:SHOWN]) + (
        f" and {len(every) - SHOWN:,} more" if len(every) > SHOWN else ""
    )


if __name__ == "__main__":
    sys.exit(main())
