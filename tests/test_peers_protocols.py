"""Our recalls against the validation procedures that peers published, written out here in numpy.

Features are those of a tiny demo: grids of colours of drawn garments, and hashed words. Numbers are
literal, so that neither side can change unseen.

Shapes: Q queries, G gallery images, D = 48 colours of a grid of 4 x 4.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from raycd.config import SyntheticConfig
from raycd.data import fashioniq
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.demo.synthetic import write_demo_data
from raycd.data.schema import Dataset
from raycd.evaluate import cached_query, evaluate
from raycd.features import Features
from raycd.model.fusion.sum import Sum

CATEGORIES = ("dress", "shirt", "toptee")
D = 48


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("demo")
    write_demo_data(
        root,
        SyntheticConfig(
            train_images=5, val_images=120, train_triplets=2, val_triplets=90, size=32, seed=3
        ),
    )
    return fashioniq.read(str(root), CATEGORIES, ("val",))


def picture(path: str) -> NDArray[np.float32]:
    with Image.open(path) as image:
        grid = np.asarray(image.convert("RGB"), np.float32).reshape(4, 8, 4, 8, 3).mean((1, 3))
    features: NDArray[np.float32] = grid.reshape(-1) / 255 - 0.5
    return features


def words(text: str) -> NDArray[np.float32]:
    feature = np.zeros(D, np.float32)
    for word in text.lower().split():
        feature[zlib.crc32(word.encode()) % D] += 0.3
    return feature


@pytest.fixture(scope="module")
def images(demo: Dataset) -> Features:
    rows = demo.images.to_pylist()
    features = np.stack([picture(row["path"]) for row in rows])
    return Features.of([row["image_id"] for row in rows], torch.from_numpy(features))


def texts_of(*texts: str) -> Features:
    known = list(dict.fromkeys(texts))
    return Features.of(known, torch.from_numpy(np.stack([words(text) for text in known])))


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def sorted_names(
    queries_QD: NDArray[np.float32], gallery_GD: NDArray[np.float32], names: Sequence[str]
) -> NDArray[np.str_]:
    """Return the gallery's names for each query by ascending cosine distance (Q, G)."""
    distance_QG = 1 - unit(queries_QD) @ unit(gallery_GD).T
    return np.array(names)[np.argsort(distance_QG, axis=1, kind="stable")]


def clip4cir_caption(first: str, second: str) -> str:
    return f"{first.strip('.?, ').capitalize()} and {second.strip('.?, ')}"


def test_fashion_iq_is_clip4cirs_validation(demo: Dataset, images: Features) -> None:
    """The whole split is searched, reference included; recalls are averaged over categories."""
    published: dict[str, dict[str, float]] = {}
    for category in CATEGORIES:
        rows = [row for row in demo.triplets.to_pylist() if row["category"] == category]
        names = demo.gallery_ids(category, "val")
        gallery_GD = images.take(names).numpy()
        text_QD = np.stack([words(clip4cir_caption(*row["captions"])) for row in rows])
        query_QD = images.take(row["reference"] for row in rows).numpy() + text_QD
        labels = sorted_names(query_QD, gallery_GD, names) == np.array(
            [[row["target"]] for row in rows]
        )
        published[category] = {f"recall@{k}": labels[:, :k].sum() / len(labels) for k in (10, 50)}
    asked = [row["text"] for row in demo.queries("val")]
    found = evaluate(demo, "val", images, cached_query(Sum(), images, texts_of(*asked))).recalls
    assert {category: found[category] for category in CATEGORIES} == published
    mean = {
        name: sum(published[category][name] for category in CATEGORIES) / 3
        for name in ("recall@10", "recall@50")
    }
    assert found["average"] == mean
    literal = {
        category: [round(100 * value, 2) for value in row.values()]
        for category, row in found.items()
    }
    assert literal == LITERAL


LITERAL = {
    "dress": [11.11, 56.67],
    "shirt": [15.56, 50.0],
    "toptee": [15.56, 61.11],
    "average": [14.07, 55.93],
}


def test_cirr_is_clip4cirs_validation() -> None:
    """The reference is taken out; the group of six is ranked without it, too."""
    rng = np.random.default_rng(5)
    names = [f"dev-{number}" for number in range(60)]
    builder = DatasetBuilder()
    builder.add_gallery("cirr", "val", names, source="here")
    for number in range(40):
        group = rng.choice(60, 6, replace=False)
        members = [names[at] for at in group]
        row = TripletRow(
            f"cirr/val/{number}", "cirr", "val", members[0], members[1], [str(number)], members
        )
        builder.add_triplet(row, where="here")
    data = builder.build({})
    image_GD = rng.normal(size=(60, 16)).astype(np.float32)
    # Texts that point a little towards the target, so that no recall is that of chance
    rows = data.triplets.to_pylist()
    at = {name: number for number, name in enumerate(names)}
    text_QD = np.stack([0.6 * image_GD[at[row["target"]]] for row in rows]) + rng.normal(
        size=(40, 16), scale=0.7
    ).astype(np.float32)
    query_QD = image_GD[[at[row["reference"]] for row in rows]] + text_QD
    every = sorted_names(query_QD, image_GD, names)
    references = np.array([[row["reference"]] for row in rows])
    targets = np.array([[row["target"]] for row in rows])
    ranked = every[every != references].reshape(len(rows), -1)  # without the reference
    labels = ranked == targets
    groups = np.array([row["subset"] for row in rows])
    inside = (ranked[:, :, None] == groups[:, None, :]).any(-1)  # five of each row
    in_group = labels[inside].reshape(len(rows), 5)
    published = {f"recall@{k}": labels[:, :k].sum() / 40 for k in (1, 5, 10, 50)}
    published |= {f"recall_subset@{k}": in_group[:, :k].sum() / 40 for k in (1, 2, 3)}

    images = Features.of(names, torch.from_numpy(image_GD))
    texts = Features.of([str(number) for number in range(40)], torch.from_numpy(text_QD))
    found = evaluate(
        data,
        "val",
        images,
        cached_query(Sum(), images, texts),
        protocol="original-masked",
        ks=(1, 5, 10, 50),
    ).recalls["average"]
    assert found == published
    assert [round(100 * value, 2) for value in found.values()] == CIRR_LITERAL


CIRR_LITERAL = [42.5, 70.0, 82.5, 100.0, 80.0, 90.0, 92.5]


def test_fashion_iq_in_both_orders_is_cosmos_evaluation(demo: Dataset, images: Features) -> None:
    """Each query is asked twice, captions in both orders; the reference is taken out of the
    gallery of the split's own images.
    """
    hits: dict[str, list[bool]] = {}
    for category in CATEGORIES:
        rows = [row for row in demo.triplets.to_pylist() if row["category"] == category]
        used = {row[side] for row in rows for side in ("reference", "target")}
        names = [name for name in demo.gallery_ids(category, "val") if name in used]
        gallery_GD = images.take(names).numpy()
        for row in rows:
            for first, second in (row["captions"], row["captions"][::-1]):
                query_1D = images.take([row["reference"]]).numpy() + words(
                    clip4cir_caption(first, second)
                )
                ranked = sorted_names(query_1D, gallery_GD, names)[0]
                first_ten = [name for name in ranked if name != row["reference"]][:10]
                hits.setdefault(category, []).append(row["target"] in first_ten)
    asked = [row["text"] for row in demo.queries("val", both_orders=True)]
    found = evaluate(
        demo,
        "val",
        images,
        cached_query(Sum(), images, texts_of(*asked)),
        protocol="val",
        ks=(10,),
        both_orders=True,
    )
    assert found.queries == dict.fromkeys(CATEGORIES, 2 * 90)
    for category in CATEGORIES:
        assert found.recalls[category]["recall@10"] == sum(hits[category]) / len(hits[category])
