"""What must be true of a gallery after whatever has happened to it: it is what was acknowledged,
everywhere alike.

Shapes: G images, D feature size, K results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from raycd.api import BatchItem, SearchResponse
from raycd.client import Client, Search, ServiceError
from raycd.gallery.records import Row
from raycd.gallery_db import GalleryDatabase
from tests.serve.crash.truth import Image, Known, Ledger

TOLERANCE = 1e-5  # of a cosine, in float32
TEXTS = ("is blue", "is striped with long sleeves")
Answer = list[tuple[str, float]]
"""Ids and scores, best first."""


def audit(client: Client, gallery_db: GalleryDatabase, ledger: Ledger, fingerprint: str) -> None:
    """Check that database and service both have what was acknowledged. Nobody may write."""
    ledger.check_versions()
    changes = gallery_db.changes(0, fingerprint)
    rows = {row.image_id: row for row in changes.rows}
    assert changes.version == gallery_db.version()
    for image_id, known in ledger.known.items():
        _check_row(image_id, rows.get(image_id), known)
    there = {image_id: row for image_id, row in rows.items() if not row.deleted}
    assert gallery_db.count() == len(there)
    _check_pages(client, there, changes.version)
    _check_found(client, there, ledger, changes.version)
    _check_gone(client, ledger.known.keys() - there.keys(), changes.version)
    _check_answers(client, there, changes.version)


def _check_row(image_id: str, row: Row | None, known: Known) -> None:
    """Check for the last acknowledged write, or one that was sent later, in the database."""
    image = None if row is None or row.deleted else row
    if not known.unsure and known.version is not None:
        assert (0 if row is None else row.version) == known.version, (
            f"{image_id}: {row} is not {known}"
        )
    assert any(_is(image, each) for each in known.possible), f"{image_id}: {row} is none of {known}"


def _is(row: Row | None, image: Image | None) -> bool:
    if row is None or image is None:
        return row is None and image is None
    if (
        dict(row.attributes) != image.attributes
        or row.categories != (image.category,)
        or row.feature is None
    ):
        return False
    return image.pictured or np.array_equal(row.feature, image.feature(len(row.feature)))


def _check_pages(client: Client, there: Mapping[str, Row], version: int) -> None:
    """Check that each replica lists what the database has, once each."""
    for _ in range(4):
        items = list(client.iter_gallery(min_version=version))
        assert len(items) == len(there)
        assert {item.image_id: (item.category, item.attributes) for item in items} == {
            image_id: (next(iter(row.categories), ""), dict(row.attributes))
            for image_id, row in there.items()
        }
        index = client.search(text="is blue", top_k=1, min_version=version).index
        assert (index.size, index.version) == (len(there), version)


def _check_found(client: Client, there: Mapping[str, Row], ledger: Ledger, version: int) -> None:
    """Check that every image is found first by its own feature, and by its own picture."""
    by_id = [(image_id, {"image_id": image_id, "top_k": 3}) for image_id in there]
    written = {image_id: ledger.known[image_id] for image_id in there if image_id in ledger.known}
    by_picture = [
        (image_id, {"image": image.picture(), "top_k": 3})
        for image_id, known in written.items()
        if (image := known.acknowledged) is not None and image.pictured and not known.unsure
    ]
    for (image_id, _), item in _answered(client, [*by_id, *by_picture], version):
        assert item.response is not None, f"{image_id}: {item.problem}"
        answer = _answer(item.response)
        assert answer[0][1] > 1 - 1e-4, f"{image_id} finds {answer}"
        assert image_id in [found for found, score in answer if score > answer[0][1] - TOLERANCE], (
            image_id,
            answer,
        )


def _check_gone(client: Client, gone: set[str], version: int) -> None:
    """Check that nobody can ask for what was deleted."""
    for (image_id, _), item in _answered(
        client, [(image_id, {"image_id": image_id}) for image_id in gone], version
    ):
        assert item.status == 404, f"{image_id} was deleted: {item}"
    for image_id in sorted(gone)[:20]:
        with pytest.raises(ServiceError) as refused:
            client.image(image_id, min_version=version)
        assert refused.value.status == 404


def _check_answers(client: Client, there: Mapping[str, Row], version: int) -> None:
    """Check that exact answers are those of the database's features."""
    ids = list(there)
    unit_GD = np.array([_unit(row.feature) for row in there.values()])
    asked = [
        (image_id, {"image_id": image_id, "top_k": 10, "exact": True})
        for image_id in ids[:: len(ids) // 40 + 1]
    ]
    for (image_id, _), item in _answered(client, asked, version):
        assert item.response is not None, item
        scores_G = unit_GD @ unit_GD[ids.index(image_id)]
        best = np.argsort(-scores_G, kind="stable")[:10]
        same(_answer(item.response), [(ids[row], float(scores_G[row])) for row in best])


def _unit(feature_D: NDArray[np.float32] | None) -> NDArray[np.float32]:
    assert feature_D is not None
    return feature_D / np.linalg.norm(feature_D)


def fixed_answers(client: Client, image_ids: Sequence[str], version: int) -> list[Answer]:
    """Return what the service says to the same queries each time: by image, by text, by both; by
    category; exact and not.
    """
    queries: list[dict[str, Any]] = [{"text": text} for text in TEXTS]
    queries += [{"image_id": image_id} for image_id in image_ids]
    queries += [
        {"image_id": image_id, "text": TEXTS[0], "category": ["given"]} for image_id in image_ids
    ]
    asked = [
        ("", {**query, "top_k": 20, "exact": exact}) for query in queries for exact in (False, True)
    ]
    answers = []
    for _, item in _answered(client, asked, version):
        assert item.response is not None, item
        answers.append(_answer(item.response))
    return answers


def same(answer: Answer, other: Answer) -> None:
    """Check for equal scores, and equal ids but for those of the same score."""
    assert len(answer) == len(other)
    scores, others = (np.array([score for _, score in each]) for each in (answer, other))
    np.testing.assert_allclose(scores, others, rtol=0, atol=TOLERANCE)
    for (image_id, score), (other_id, _) in zip(answer, other, strict=True):
        tied = {found for found, its in other if abs(its - score) <= 2 * TOLERANCE}
        last = (
            abs(score - scores[-1]) <= 2 * TOLERANCE
        )  # the end may cut off another one of equal images
        assert image_id == other_id or image_id in tied or last, f"{answer} is not {other}"


def _answered(
    client: Client, asked: Sequence[tuple[str, dict[str, Any]]], version: int
) -> Iterator[tuple[tuple[str, dict[str, Any]], BatchItem]]:
    """Yield each query with its answer, from that version on."""
    most = client.info().limits.batch
    for start in range(0, len(asked), most):
        some = asked[start : start + most]
        items = client.search_batch(
            [cast(Search, query) for _, query in some], min_version=version
        ).items
        yield from zip(some, items, strict=True)


def _answer(response: SearchResponse) -> Answer:
    return [(found.image_id, found.score) for found in response.results]
