"""Small cases, and a brute-force reading of eq. 9 in plain loops, ties and duplicates included."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raycd import mine
from raycd.config import MineConfig
from raycd.data.schema import GALLERY, TRIPLET

CATEGORIES = ("dress", "shirt", "toptee")


class Case(NamedTuple):
    """A small data set: ids, features, galleries {category: ids} and triplets.

    A triplet is (id, category, reference, target).
    """

    ids: list[str]
    image_ND: NDArray[np.float32]
    galleries: dict[str, list[str]]
    triplets: list[tuple[str, str, str, str | None]]
    text_TD: NDArray[np.float32]

    def gallery(self) -> pa.Table:
        rows = [
            (category, "train", image)
            for category, images in self.galleries.items()
            for image in images
        ]
        return pa.Table.from_pylist(
            [dict(zip(GALLERY.names, row, strict=True)) for row in rows], schema=GALLERY
        )

    def rows(self) -> mine.TripletRows:
        table: list[dict[str, Any]] = [
            {
                "triplet_id": i,
                "category": c,
                "split": "train",
                "reference": r,
                "target": t,
                "captions": [],
            }
            for i, c, r, t in self.triplets
        ]
        return mine.of_triplets(self.ids, pa.Table.from_pylist(table, schema=TRIPLET))

    def candidates(self, settings: MineConfig) -> pa.Table:
        rows = self.rows()
        found = mine.find_neighbours(
            self.image_ND, mine.make_pools(settings.pool, self.gallery(), rows), settings
        )
        return mine.make_candidates(
            rows, found, partial(mine.matching_scores, self.image_ND, self.text_TD), encoder="abc"
        )

    def pseudo(self, settings: MineConfig) -> tuple[pa.Table, mine.Counts]:
        return mine.filter_candidates(self.candidates(settings), **thresholds(settings))


def thresholds(settings: MineConfig) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in ("eps_low", "eps_high", "s_max", "alpha")}


def random_case(
    seed: int, *, images: int = 30, dim: int = 6, kind: str = "smooth", triplets: int = 25
) -> Case:
    """Draw a case.

    `ties`: few distinct values, so that many similarities are equal. `duplicates`: every image
    occurs four times.
    """
    rng = np.random.default_rng(seed)
    image_ND = rng.normal(size=(images, dim)) + rng.normal(size=dim)
    if kind == "ties":
        image_ND = rng.integers(0, 3, (images, dim)).astype(float)
    if kind == "duplicates":
        image_ND = image_ND[rng.integers(0, images // 4, images)]
    ids = [f"image-{i}" for i in range(images)]
    galleries = {name: [i for i in ids if rng.random() < 0.5] for name in CATEGORIES}
    rows: list[tuple[str, str, str, str | None]] = []
    for t in range(triplets):
        category = CATEGORIES[rng.integers(3)]
        reference, target = rng.choice(galleries[category], 2)
        rows.append((f"triplet-{t}", category, str(reference), None if t == 7 else str(target)))
    text_TD = rng.normal(size=(triplets, dim)).astype(np.float32)
    return Case(ids, image_ND.astype(np.float32), galleries, rows, text_TD)


def settings_of(**fields: Any) -> MineConfig:
    return MineConfig(**({"neighbours": 64, "floor": -1, "eps_low": 0.3, "alpha": 0.0} | fields))


# The oracle: eq. 9 as it is written, one image and one triplet at a time.


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    def unit(x: NDArray[np.float32]) -> NDArray[np.float64]:
        wide = x.astype(np.float64)
        length = np.sqrt(np.sum(wide * wide))
        return (wide / length if length else wide).astype(np.float32).astype(np.float64)

    return round(float(np.sum(unit(a) * unit(b))), 6)


def oracle_neighbours(
    case: Case, image: str, pool: list[str], floor: float
) -> list[tuple[float, int]]:
    """Return (similarity, row) of every other image of the pool at or above the floor, in order."""
    row = case.ids.index(image)
    others = sorted({case.ids.index(other) for other in pool} - {row})
    found = [(cosine(case.image_ND[row], case.image_ND[other]), other) for other in others]
    return sorted(
        (pair for pair in found if pair[0] >= floor), key=lambda pair: (-pair[0], pair[1])
    )


def oracle_pool(case: Case, category: str, kind: str) -> list[str]:
    if kind == "category":
        return case.galleries[category]
    return [image for images in case.galleries.values() for image in images]
