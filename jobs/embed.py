"""Embeds images and texts with a frozen encoder, once (eq. 8).

Those of a run, with its fine-tuned encoder, after earlier stages:

    python jobs/embed.py --preset demo

Or images alone, into Parquet shards of (key, status, feature), on as many machines as Ray has:

    python jobs/embed.py --images gallery.csv --bundle runs/demo/bundle --out features
    python jobs/embed.py --images s3://shop/photos --out s3://shop/features \\
        --encoder.name ViT-B-32 --encoder.pretrained laion2b_s34b_b79k
    python jobs/embed.py --images 'shards/train-*.tar' --bundle runs/demo/bundle --out features

Killed at any moment, the same command continues. What images may be: docs/data.md.
"""

import argparse
import posixpath
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from raycd.config import cli
from raycd.errors import ConfigError

if TYPE_CHECKING:
    from raycd.model.encoder import Encoder


def flags(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument
    own(
        "--images",
        metavar="SOURCE",
        help="Embed these alone: a gallery table, a folder, Parquet files with pictures, .tar "
        "files; a path, a pattern or a URI.",
    )
    own("--out", metavar="FOLDER", help="Where their features go: a folder or a URI.")
    own(
        "--bundle",
        metavar="BUNDLE",
        help="With this bundle's encoder: a folder or models:/name@alias. (that of encoder.*)",
    )


def main(options: cli.Options) -> None:
    asked = options.flags
    if asked.images and asked.out:
        embed_images(options)
    elif asked.images or asked.out or asked.bundle:
        raise ConfigError(
            "embedding images alone takes --images and --out",
            do="give both, or neither to embed the run of --preset or --config",
        )
    else:
        embed_run(options)


def embed_run(options: cli.Options) -> None:
    """Embed the images and texts of a run."""
    from raycd.runtime import pipeline

    run = pipeline.run(options.config, until="embed").run
    counts = pipeline.recorded(run, "embed")["counts"]
    missing = counts["missing"]
    print(f"images:   {counts['images'] - missing:,} embedded, {missing:,} missing or broken")
    print(f"texts:    {counts['texts']:,} embedded")
    print(f"features: {run.path('embed')}")


def embed_images(options: cli.Options) -> None:
    """Embed the images of a source; list those that cannot be read."""
    from raycd import scratch
    from raycd.data.folder import absolute
    from raycd.features import shards
    from raycd.runtime import cluster, local_ray
    from raycd.runtime.embed import embed_shards
    from raycd.runtime.stages.embed import LISTED

    # Workers have another working folder
    source, out = (absolute(given) for given in (options.flags.images, options.flags.out))
    local_ray.address()  # a wrong RAY_ADDRESS ends it before anything is fetched
    with cluster.connected(options.config.compute):
        stored = embed_shards.embed_source(out, source, _encoder(options), options.config)
    missing, listed = stored.report(), posixpath.join(out, LISTED)
    with scratch.folder() as folder, (folder / LISTED).open("wb") as file:
        file.writelines(stored.listing(missing))
        file.flush()
        shards.write_file(listed, folder / LISTED)
    print(f"images:   {stored.starts[-1]:,} embedded, {len(missing):,} missing or broken")
    if len(missing):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in missing.counts().items())
        print(f"missing:  {reasons}; listed in {listed}")
    print(f"features: {out}, {len(stored.parts):,} shards of {stored.dim} numbers an image")


def _encoder(options: cli.Options) -> "Encoder":
    from raycd import bundle
    from raycd.runtime.stages import beginning
    from serve.engine import swap

    if not options.flags.bundle:
        return beginning.load_encoder(options.config)[0]
    folder = swap.folder(options.flags.bundle)
    return bundle.load_encoder(folder, bundle.verify(folder))


def program(argv: Sequence[str] | None = None, prog: str = "jobs/embed.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main, argv, prog=prog, description="Embed images and texts with a frozen CLIP.", flags=flags
    )


if __name__ == "__main__":
    sys.exit(program())
