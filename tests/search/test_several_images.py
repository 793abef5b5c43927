"""Queries of several images, some of which push away, against their definition in plain arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycd import bundle
from raycd.errors import DataError
from raycd.search.query import Query, Reference
from raycd.search.searcher import NoReference, Searcher
from tests.search.arrays import Vector, fused, gallery_features, image_feature, text_feature, unit


@pytest.fixture(scope="module")
def searcher(tiny_bundle: Any) -> Searcher:
    return Searcher(bundle.load(tiny_bundle.folder), threads=1, text_cache=100)


def scores(searcher: Searcher, query: Query) -> dict[str, float]:
    [results] = searcher.search([query])
    return {result.image_id: result.score for result in results}


def cosines(searcher: Searcher, query_D: Vector) -> Any:
    ids = bundle.read_gallery(searcher.bundle.folder)["image_id"].to_pylist()
    found = gallery_features(searcher) @ unit(query_D)
    return pytest.approx(dict(zip(ids, found.tolist(), strict=True)), abs=1e-5)


def some(tiny_bundle: Any, **weights: float) -> list[Reference]:
    """Return references to images by their numbers; the even ones are sent, the others named."""
    numbers = {int(name[1:]): weight for name, weight in weights.items()}
    return [
        Reference(image_id=f"image-{number}", weight=weight)
        if number % 2
        else Reference(tiny_bundle.images[number], weight=weight)
        for number, weight in numbers.items()
    ]


def test_images_with_a_text_are_the_weighted_mean_of_what_the_head_makes_of_each(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    halves = [image_feature(searcher, tiny_bundle.images[number]) for number in (2, 3, 5)]
    text = text_feature(searcher, "is blue")
    heads = [fused(searcher, half, text) for half in halves]
    query = (1.0 * heads[0] + 3.0 * heads[1]) / 4 - 0.7 * unit(halves[2])
    query += 0.5 * unit((unit(halves[0]) + 3 * unit(halves[1])) / 4)  # image_weight - 1
    images = some(tiny_bundle, n2=1.0, n3=3.0, n5=-0.7)
    asked = Query(text="is blue", images=images, image_weight=1.5, top_k=12)
    assert scores(searcher, asked) == cosines(searcher, query)


def test_images_alone_are_their_weighted_mean_and_some_push_away(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    halves = [unit(image_feature(searcher, tiny_bundle.images[n])) for n in (0, 1, 4, 7)]
    query = (2 * halves[0] + halves[1]) / 3 - 0.5 * halves[2] - 1.5 * halves[3]
    images = some(tiny_bundle, n0=2.0, n1=1.0, n4=-0.5, n7=-1.5)
    assert scores(searcher, Query(images=images, top_k=12)) == cosines(searcher, query)


def test_images_push_away_from_a_text_alone(searcher: Searcher, tiny_bundle: Any) -> None:
    text = unit(text_feature(searcher, "a dress"))
    query = text - 0.8 * unit(image_feature(searcher, tiny_bundle.images[3]))
    asked = Query(text="a dress", images=some(tiny_bundle, n3=-0.8), top_k=12)
    assert scores(searcher, asked) == cosines(searcher, query)


def test_one_image_of_any_weight_is_the_image_given_alone(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    for text in ("", "is blue"):
        alone = scores(searcher, Query(tiny_bundle.images[2], text, top_k=12))
        for weight in (0.25, 4.0, 1e-50):
            several = Query(text=text, images=some(tiny_bundle, n2=weight, n9=0.0), top_k=12)
            assert scores(searcher, several) == pytest.approx(alone, abs=1e-5)


def test_queries_of_several_images_in_one_batch_do_not_mix(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    queries = [
        Query(text="is blue", images=some(tiny_bundle, n2=1.0, n3=2.0), top_k=12),
        Query(text="a dress", top_k=12),
        Query(images=some(tiny_bundle, n1=1.0, n4=-0.5, n6=1.0), top_k=12),
        Query(tiny_bundle.images[8], "is red", top_k=12),
        Query(text="is red", images=some(tiny_bundle, n5=-1.0), top_k=12),
    ]
    together = searcher.search(queries)
    for query, results in zip(queries, together, strict=True):
        alone = scores(searcher, query)
        found = {result.image_id: result.score for result in results}
        assert found == pytest.approx(alone, abs=1e-5)


def test_every_image_of_the_gallery_that_is_named_is_left_out(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    images = some(tiny_bundle, n1=1.0, n3=1.0, n4=1.0, n5=-0.5)
    whole = scores(searcher, Query(images=images, top_k=12))
    found = scores(searcher, Query(images=images, top_k=9, exclude_reference=True))
    assert list(found) == [one for one in whole if one not in ("image-1", "image-3", "image-5")]


def test_the_explanation_is_the_cosine_with_the_mean_of_the_references(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    halves = [unit(image_feature(searcher, tiny_bundle.images[n])) for n in (0, 1)]
    expected = gallery_features(searcher) @ unit(halves[0] + halves[1])
    images = some(tiny_bundle, n0=1.0, n1=1.0, n7=-0.5)
    [results] = searcher.search([Query(images=images, top_k=12)])
    for result in results:
        assert result.image_score == pytest.approx(float(expected[result.position]), abs=1e-5)


def test_what_is_missing_is_named(searcher: Searcher, tiny_bundle: Any) -> None:
    images = [*some(tiny_bundle, n1=1.0), Reference(image_id="nobody", weight=-1)]
    with pytest.raises(NoReference) as caught:
        searcher.search([Query(images=images)])
    assert caught.value.image_id == "nobody"
    with pytest.raises(DataError, match="neither an image nor a text"):
        searcher.search([Query(images=some(tiny_bundle, n1=-1.0, n2=0.0))])


def test_a_head_that_reranks_orders_one_image_and_a_text_alone(
    tiny_bundle: Any, bundle_with_head: Any
) -> None:
    folder: Path = bundle_with_head("dcnet")
    searcher = Searcher(bundle.load(folder), threads=1)
    one, two = some(tiny_bundle, n3=1.0), some(tiny_bundle, n3=1.0, n5=1.0)
    pushed = some(tiny_bundle, n3=1.0, n5=-0.5)
    answers = searcher.answer(
        [searcher.prepare(Query(text="is blue", images=images)) for images in (one, two, pushed)]
    )
    assert [answer.reranked for answer in answers] == [True, False, True]
    scores = np.array([result.rerank_score for result in answers[2].results])
    assert (np.diff(scores) <= 0).all()
