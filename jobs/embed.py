"""Embeds all images and texts with the fine-tuned encoder, once (eq. 8), after earlier stages.

python jobs/embed.py --preset demo
"""

import sys

from raycd.config import cli


def main(options: cli.Options) -> None:
    from raycd.runtime import pipeline

    run = pipeline.run(options.config, until="embed").run
    counts = pipeline.recorded(run, "embed")["counts"]
    missing = counts["missing"]
    print(f"images:   {counts['images'] - missing:,} embedded, {missing:,} missing or broken")
    print(f"texts:    {counts['texts']:,} embedded")
    print(f"features: {run.path('embed')}")


if __name__ == "__main__":
    sys.exit(
        cli.run(
            main,
            prog="jobs/embed.py",
            description="Embed all images and texts with the fine-tuned CLIP.",
        )
    )
