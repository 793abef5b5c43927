"""What queries are made of: pictures as the demo draws them, and sentences as its triplets say
them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jobs.benchmarks.serving.questions import IMAGE_IDS, PICTURES, TEXTS
from raycd.data.demo.drawing import draw
from raycd.data.demo.garments import CATEGORIES, changed, random_garment
from raycd.data.demo.wording import compare

COUNT = 512


def write(folder: Path, image_ids: Sequence[str], size: int) -> None:
    """Fill `folder` (created) with `COUNT` JPEG pictures of size x size pixels, texts and ids of
    the gallery.
    """
    rng = np.random.default_rng(0)
    (folder / PICTURES).mkdir(parents=True)
    texts: list[str] = []
    for number in range(COUNT):
        garment = random_garment(rng, CATEGORIES[number % len(CATEGORIES)])
        draw(rng, garment, size).save(folder / PICTURES / f"{number:04d}.jpg", quality=92)
        texts += compare(rng, garment, changed(rng, garment, 2))
    chosen = [image_ids[place] for place in rng.permutation(len(image_ids))[:COUNT]]
    (folder / TEXTS).write_text(json.dumps(sorted(set(texts))), encoding="utf-8")
    (folder / IMAGE_IDS).write_text(json.dumps(chosen), encoding="utf-8")
