"""Pre-trains the demo's small CLIP and keeps it in the cache, unless it is there already.

python jobs/pretrain.py --preset demo
"""

import sys
from collections.abc import Sequence

from raycd import progress
from raycd.config import cli


def main(options: cli.Options) -> None:
    from raycd.runtime.stages.context import own_device
    from raycd.train.pretrain import cached

    config = options.config
    folder = cached(config.pretrain, config.encoder.padding, own_device(config))
    progress.say(f"pre-trained encoder: {folder}")


def program(argv: Sequence[str] | None = None, prog: str = "jobs/pretrain.py") -> int:
    """Do what the command line says, and return the exit code."""
    return cli.run(
        main,
        argv,
        prog=prog,
        description="Pre-train the demo's small CLIP on generic captions.",
        again=cli.ANEW,
    )


if __name__ == "__main__":
    sys.exit(program())
