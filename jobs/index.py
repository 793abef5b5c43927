"""Writes encoder, fusion head, gallery and index as the bundle to serve, after earlier stages.

    python jobs/index.py --preset demo

Or encode a live gallery with the encoder of a bundle that is to serve it next; the service goes on
meanwhile:

    python jobs/index.py --gallery runs/demo/gallery.sqlite --bundle runs/new/bundle

Killed at any moment, the same command continues. Exit code 2: some images cannot be encoded.
"""

import argparse
import sys
from collections.abc import Sequence

from raycd.config import cli, settings
from raycd.errors import ConfigError, DataError

SHOWN = 5  # ids of images that cannot be encoded


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gallery",
        default="",
        metavar="URL",
        help="Re-embed this live gallery: a SQLite file or a postgresql:// URL.",
    )
    parser.add_argument(
        "--bundle",
        metavar="BUNDLE",
        help="With this bundle's encoder: a folder or models:/name@alias.",
    )
    parser.add_argument(
        "--pictures",
        default="",
        metavar="ROOT",
        help="Where the service keeps uploaded pictures. (beside the SQLite file)",
    )


def main(options: cli.Options) -> None:
    asked = options.flags
    if asked.bundle:
        asked.gallery, asked.pictures = settings.addresses(asked.gallery, asked.pictures)
    if asked.gallery and asked.bundle:
        reembed_gallery(options)
    elif asked.gallery or asked.bundle or asked.pictures:
        raise ConfigError(
            "re-embedding a live gallery takes --gallery and --bundle",
            do="give both, or neither to index the run of --preset or --config",
        )
    else:
        index_run(options)


def index_run(options: cli.Options) -> None:
    """Write the run's bundle."""
    from raycd.runtime import pipeline

    run = pipeline.run(options.config, until="bundle").run
    record = pipeline.recorded(run, "bundle")
    mebibytes = (
        sum(file.stat().st_size for file in run.local("bundle").rglob("*") if file.is_file())
        / 2**20
    )
    print(f"bundle:      {run.path('bundle')}")
    index = record["index"]
    print(f"size:        {index['size']:,} images in the index, {mebibytes:,.1f} MiB on disk")
    print(f"index:       {index['kind']}, recall@10 {index['recall']:.4f} of exact search")
    print(f"fingerprint: {record['digest']}")


def reembed_gallery(options: cli.Options) -> None:
    """Encode the live gallery with the bundle's encoder. Raises DataError where it cannot."""
    from raycd import bundle
    from raycd.gallery_db.stored import StoredGallery
    from raycd.runtime import cluster, local_ray
    from raycd.runtime.embed import reembedding
    from serve.engine import swap

    asked = options.flags
    local_ray.address()  # a wrong RAY_ADDRESS ends it before anything is fetched
    with StoredGallery.open(asked.gallery, asked.pictures) as stored:
        folder = swap.folder(asked.bundle)
        manifest = bundle.verify(folder)
        with cluster.connected(options.config.compute):
            done = reembedding.reembed(
                stored, bundle.load_encoder(folder, manifest), options.config
            )
        print(f"encoder:     {manifest.encoder.name}, {manifest.encoder.fingerprint[:12]}")
        print(
            f"encoded:     {done.encoded:,} images now, "
            f"{stored.gallery_db.count():,} in the gallery"
        )
    if done.broken:
        some = ", ".join(
            f"{image_id} ({reason})" for image_id, reason in list(done.broken.items())[:SHOWN]
        )
        raise DataError(
            f"{len(done.broken):,} images of the gallery cannot be encoded",
            got=some + (", ..." if len(done.broken) > SHOWN else ""),
            expected="pictures that can be read; the service refuses a bundle that would lose "
            "images",
            do="import these images again with their pictures, or delete them, and run the same "
            "command again",
        )
    print(
        f"next:        serve/app.py: put {asked.bundle} in the place of the bundle that it serves, "
        "then kill -HUP"
    )
    print(
        f"             on a cluster: deploy with user_config {{bundle: {asked.bundle}}}; "
        "docs/gallery.md has both"
    )


def program(argv: Sequence[str] | None = None, prog: str = "jobs/index.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main,
        argv,
        prog=prog,
        description="Index the gallery and write the bundle for serving.",
        flags=flags,
    )


if __name__ == "__main__":
    sys.exit(program())
