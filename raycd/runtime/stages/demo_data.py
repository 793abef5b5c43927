"""The stage `catalogue`: the demo data, drawn."""

from __future__ import annotations

from raycd.data.demo.garments import CATEGORIES
from raycd.data.demo.synthetic import SPLITS, write_demo_data
from raycd.progress import Bar
from raycd.run import Writing
from raycd.runtime.stages.context import (
    Context,
)


def draw(context: Context, writing: Writing) -> None:
    """Draw the demo data."""
    config = context.config.data.synthetic
    total = len(CATEGORIES) * (config.train_images + config.val_images)
    with Bar("draw demo data", total=total, unit="images") as bar:
        write_demo_data(writing.folder, config, bar.advance)
    writing.record["counts"] = {
        "images": total,
        "categories": len(CATEGORIES),
        "splits": len(SPLITS),
    }
