"""The demo data set: garments drawn from a seed, written in Fashion-IQ's own files and layout.

attributes.json beside them describes each garment.

Garments come in families that differ in one to three attributes, and a triplet joins two members of
a family: a gallery holds near misses of every target, as a shop does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from raycd.config import SyntheticConfig
from raycd.data.attributes import FILE, Attributes
from raycd.data.demo.drawing import draw
from raycd.data.demo.garments import (
    CATEGORIES,
    Garment,
    attributes,
    changed,
    differences,
    random_garment,
)
from raycd.data.demo.wording import compare, describe

FAMILY = 5  # garments that are variations of one another
SPLITS = ("train", "val")


def write_demo_data(
    root: Path, config: SyntheticConfig, advance: Callable[[int], None] = lambda n: None
) -> None:
    """Draw the demo data into `root` (created): Fashion-IQ's folders and attributes.json.

    The same configuration gives the same bytes. `advance(n)` is called as images are drawn.
    """
    for folder in ("captions", "image_splits", "images"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    described: dict[str, Attributes] = {}
    for c, category in enumerate(CATEGORIES):
        for s, split in enumerate(SPLITS):
            rng = np.random.default_rng([config.seed, c, s])
            images, triplets = (
                (config.train_images, config.train_triplets)
                if split == "train"
                else (config.val_images, config.val_triplets)
            )
            garments = _garments(rng, category, images)
            ids = [f"{category[0].upper()}{split[0].upper()}{i:06d}" for i in range(images)]
            for image_id, garment in zip(ids, garments, strict=True):
                draw(rng, garment, config.size).save(
                    root / "images" / f"{image_id}.jpg", quality=92
                )
                advance(1)
            described |= {
                image_id: attributes(garment)
                for image_id, garment in zip(ids, garments, strict=True)
            }
            _write_json(root / "image_splits" / f"split.{category}.{split}.json", ids)
            captions = list(_triplets(rng, ids, garments, triplets))
            _write_json(root / "captions" / f"cap.{category}.{split}.json", captions)
    _write_json(root / FILE, described)


def pretraining_pairs(seed: int, count: int, size: int) -> Iterator[tuple[Image.Image, str]]:
    """Draw `count` images (size x size, RGB) with generic captions; none is in the demo data."""
    rng = np.random.default_rng([seed, 1 << 20])
    for i in range(count):
        garment = random_garment(rng, CATEGORIES[i % len(CATEGORIES)])
        yield draw(rng, garment, size), describe(rng, garment)


def _garments(rng: np.random.Generator, category: str, count: int) -> list[Garment]:
    """Draw garments in families: each member changes one to three attributes of an earlier one."""
    garments: list[Garment] = []
    for i in range(count):
        first = i - i % FAMILY
        if i == first:
            garments.append(random_garment(rng, category))
        else:
            garments.append(
                changed(rng, garments[int(rng.integers(first, i))], int(rng.integers(1, 4)))
            )
    return garments


def _triplets(
    rng: np.random.Generator, ids: list[str], garments: list[Garment], count: int
) -> Iterator[dict[str, object]]:
    """Yield pairs of one family with two captions; ordered pairs are unique and differ visibly."""
    pairs = [
        (r, t)
        for first in range(0, len(ids), FAMILY)
        for r in range(first, min(first + FAMILY, len(ids)))
        for t in range(first, min(first + FAMILY, len(ids)))
        if r != t and 1 <= len(differences(garments[r], garments[t])) <= 4
    ]
    # Each target gets one triplet before any gets two: as in Fashion-IQ, targets hardly repeat.
    order = rng.permutation(len(pairs))
    seen: dict[int, int] = {}
    chosen = sorted(order, key=lambda i: _turn(seen, pairs[i][1]))[:count]
    for i in chosen:
        r, t = pairs[i]
        yield {
            "target": ids[t],
            "candidate": ids[r],
            "captions": list(compare(rng, garments[r], garments[t])),
        }


def _turn(seen: dict[int, int], target: int) -> int:
    seen[target] = seen.get(target, -1) + 1
    return seen[target]


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
