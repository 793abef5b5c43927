"""Pre-train the demo's small CLIP and keep it in the cache; nothing to do where it is there
already.

python jobs/pretrain.py --preset demo
"""

import sys

from raycd import progress
from raycd.config import cli


def main(options: cli.Options) -> None:
    from raycd.train.pretrain import cached

    config = options.config
    progress.say(f"pre-trained encoder: {cached(config.pretrain, config.encoder.target_pad)}")


if __name__ == "__main__":
    sys.exit(
        cli.run(
            main,
            prog="jobs/pretrain.py",
            description="Pre-train the demo's small CLIP on generic captions.",
            again=cli.ANEW,
        )
    )
