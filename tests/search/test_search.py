"""Queries against the definition of a query's feature, computed here in plain arrays."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from raycd import bundle
from raycd.errors import DataError
from raycd.gallery.static import Gallery
from raycd.gallery.view import View
from raycd.index import Index
from raycd.search.cache import CountedCache
from raycd.search.query import Query, Result
from raycd.search.searcher import NEGATIVE, Searcher
from tests.search.arrays import (
    Vector,
    fused,
    gallery_features,
    image_feature,
    text_feature,
    unit,
)


@pytest.fixture(scope="module")
def searcher(tiny_bundle: Any) -> Searcher:
    return Searcher(bundle.load(tiny_bundle.folder), threads=1, text_cache=100)


def check(searcher: Searcher, tiny_bundle: Any, results: list[Result], query_D: Vector) -> None:
    """Check all images of the gallery by their cosine with the query."""
    cosines = gallery_features(searcher) @ query_D
    expected = dict(zip(tiny_bundle.image_ids, cosines.tolist(), strict=True))
    assert {result.image_id: result.score for result in results} == pytest.approx(
        expected, abs=1e-5
    )
    assert [result.score for result in results] == sorted(
        (result.score for result in results), reverse=True
    )


def ask(searcher: Searcher, *arguments: Any, **fields: Any) -> list[Result]:
    [results] = searcher.search([Query(*arguments, **{"top_k": 12, **fields})])
    return results


def test_an_image_and_a_text_are_fused_by_the_head(searcher: Searcher, tiny_bundle: Any) -> None:
    image = tiny_bundle.images[0]
    query = fused(searcher, image_feature(searcher, image), text_feature(searcher, "is blue"))
    check(searcher, tiny_bundle, ask(searcher, image, "is blue"), query)


def test_an_image_alone_and_a_text_alone_are_queries(searcher: Searcher, tiny_bundle: Any) -> None:
    image = tiny_bundle.images[3]
    check(searcher, tiny_bundle, ask(searcher, image), unit(image_feature(searcher, image)))
    check(
        searcher,
        tiny_bundle,
        ask(searcher, text="a dress"),
        unit(text_feature(searcher, "a dress")),
    )
    assert ask(searcher, image)[0].image_id == "image-3"


def test_encoders_in_bf16_answer_nearly_alike(searcher: Searcher, tiny_bundle: Any) -> None:
    held = Searcher(bundle.load(tiny_bundle.folder), threads=1, precision="bf16")
    query = Query(tiny_bundle.images[3], "is blue", top_k=12)
    exact_D, near_D = (one.encode([one.prepare(query)]).query_BD[0] for one in (searcher, held))
    assert 1e-6 < np.linalg.norm(near_D - exact_D) < 0.05
    assert held.search([query])[0][0].image_id == searcher.search([query])[0][0].image_id


def test_an_image_of_the_gallery_is_as_if_it_were_sent(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    sent = ask(searcher, tiny_bundle.images[5], "is blue")
    named = ask(searcher, image_id="image-5", text="is blue")
    assert [result.image_id for result in named] == [result.image_id for result in sent]
    for left, right in zip(sent, named, strict=True):
        assert [left.score, *left[6:]] == pytest.approx([right.score, *right[6:]], abs=1e-5)
        assert left.relative_score == pytest.approx(right.relative_score, abs=0.02)


def test_weights_and_a_negative_text_pull_at_the_query(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    image, negative = tiny_bundle.images[0], "has a belt"
    image_D, text_D = image_feature(searcher, image), text_feature(searcher, "is blue")
    query = fused(searcher, image_D, text_D)
    query = (
        query
        + 1.5 * unit(image_D)
        - 0.75 * unit(text_D)
        - NEGATIVE * unit(text_feature(searcher, negative))
    )
    results = ask(
        searcher, image, "is blue", image_weight=2.5, text_weight=0.25, negative_text=negative
    )
    check(searcher, tiny_bundle, results, unit(query))


def test_weights_of_what_is_not_there_change_nothing(searcher: Searcher, tiny_bundle: Any) -> None:
    image = tiny_bundle.images[0]
    plain, weighted = ask(searcher, image), ask(searcher, image, text_weight=5.0)
    assert [result.score for result in weighted] == pytest.approx(
        [result.score for result in plain], abs=1e-6
    )


@pytest.mark.parametrize("size", [1, 2])
def test_the_relative_score_is_0_where_the_gallery_is_one_image_or_all_are_alike(
    searcher: Searcher, tiny_bundle: Any, size: int
) -> None:
    features = searcher.encode_images([searcher.preprocess(tiny_bundle.images[0])]).repeat(
        size, axis=0
    )
    index = Index.build(features, searcher.bundle.config.index)
    view = View.of(index, Gallery(searcher.bundle.gallery.slice(0, size)))
    query = searcher.prepare(Query(tiny_bundle.images[0], "is blue", top_k=3), view)
    [answer] = searcher.answer([query])
    assert [result.relative_score for result in answer.results] == [0.0] * size


def test_the_relative_score_is_the_z_score_over_the_gallery(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    results = ask(searcher, tiny_bundle.images[0], "is blue")
    scores = np.array([result.score for result in results])
    expected = (scores - scores.mean()) / scores.std()
    assert [result.relative_score for result in results] == pytest.approx(
        expected.tolist(), abs=1e-3
    )


def test_the_explanation_is_the_cosine_with_each_half(searcher: Searcher, tiny_bundle: Any) -> None:
    image = tiny_bundle.images[0]
    features = gallery_features(searcher)
    by_image = features @ unit(image_feature(searcher, image))
    by_text = features @ unit(text_feature(searcher, "is blue"))
    for result in ask(searcher, image, "is blue"):
        assert result.image_score == pytest.approx(float(by_image[result.position]), abs=1e-5)
        assert result.text_score == pytest.approx(float(by_text[result.position]), abs=1e-5)
    assert {result.text_score for result in ask(searcher, image)} == {None}
    assert {result.image_score for result in ask(searcher, text="is blue")} == {None}


def test_a_filter_an_offset_and_the_reference_left_out(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    whole = [result.image_id for result in ask(searcher, image_id="image-4", text="is blue")]
    allowed = searcher.view.allowed(["dress"])
    assert [
        result.image_id
        for result in ask(searcher, image_id="image-4", text="is blue", allowed=allowed)
    ] == [image_id for image_id in whole if int(image_id[6:]) % 2]
    assert [
        r.image_id for r in ask(searcher, image_id="image-4", text="is blue", top_k=4, offset=3)
    ] == whole[3:7]
    without = [image_id for image_id in whole if image_id != "image-4"]
    found = ask(searcher, image_id="image-4", text="is blue", top_k=5, exclude_reference=True)
    assert [result.image_id for result in found] == without[:5]
    assert ask(searcher, text="is blue", offset=12) == []
    assert ask(searcher, text="is blue", allowed=searcher.view.allowed(["hat"])) == []


def test_a_result_names_the_first_category_of_its_image(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    by_id = {
        result.image_id: result.category
        for result in ask(searcher, tiny_bundle.images[0], "is blue")
    }
    assert (by_id["image-0"], by_id["image-1"]) == ("shirt", "dress")


def test_a_batch_answers_as_single_queries_do(searcher: Searcher, tiny_bundle: Any) -> None:
    queries = [
        Query(tiny_bundle.images[0], "is blue", top_k=1),
        Query(text="has long sleeves", top_k=2, exact=True),
        Query(image_id="image-7", top_k=3, allowed=searcher.view.allowed(["dress"])),
        Query(tiny_bundle.images[2], "is red", top_k=4, negative_text="is blue", offset=2),
        Query(image_id="image-7", text="is blue", top_k=5, exclude_reference=True),
    ]
    prepared = [searcher.prepare(query) for query in queries]
    together = searcher.answer(prepared)
    assert [len(answer.results) for answer in together] == [1, 2, 3, 4, 5]
    assert {answer.batch for answer in together} == {5}
    for query, answer in zip(queries, together, strict=True):
        [alone] = searcher.search([query])
        assert [result.image_id for result in answer.results] == [
            result.image_id for result in alone
        ]
        assert [r.score for r in answer.results] == pytest.approx(
            [r.score for r in alone], abs=1e-5
        )


def test_neither_encoder_runs_for_what_is_known(
    tiny_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = Searcher(bundle.load(tiny_bundle.folder), threads=1, text_cache=10)
    first = ask(searcher, image_id="image-5", text="is blue", negative_text="is red")

    def refuse(*arguments: Any) -> torch.Tensor:
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(searcher.bundle.encoder, "encode_images", refuse)
    monkeypatch.setattr(searcher.bundle.encoder, "encode_tokens", refuse)
    monkeypatch.setattr(searcher.bundle.encoder, "tokenize", refuse)
    assert ask(searcher, image_id="image-5", text=" is blue ", negative_text="is red") == first
    with pytest.raises(AssertionError):
        ask(searcher, image_id="image-5", text="is green")


def test_a_cache_is_bounded_and_counts_what_was_looked_for() -> None:
    cache: CountedCache[int] = CountedCache(2)
    for number, name in enumerate("ab"):
        cache.put(name, number)
    assert cache.get("a") == 0
    cache.put("c", 2)
    assert [cache.get(name) for name in "abc"] == [0, None, 2]
    assert cache.looked() == {"hit": 3, "miss": 1}
    assert cache.looked() == {}  # since then
    nothing: CountedCache[int] = CountedCache(0)
    nothing.put("a", 0)
    assert nothing.get("a") is None


def test_a_known_text_is_not_encoded_again(searcher: Searcher) -> None:
    searcher.search([Query(None, "is a text of its own")])
    searcher.texts.looked()
    assert searcher.prepare(Query(None, "is a text of its own")).text
    assert searcher.texts.looked() == {"hit": 1}


def test_top_k_is_cut_to_the_gallery_and_no_query_is_no_work(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    assert len(ask(searcher, tiny_bundle.images[0], "is blue", top_k=1000)) == 12
    assert searcher.search([]) == []


def test_long_texts_are_cut_and_marked(searcher: Searcher, tiny_bundle: Any) -> None:
    image, long = tiny_bundle.images[0], ("is blue " * 100).strip()
    assert searcher.prepare(Query(image, "is blue")).truncated == []
    assert searcher.prepare(Query(image, "is blue", negative_text=long)).truncated == [long]
    assert len(ask(searcher, image, long)) == 12
    assert searcher.prepare(Query(image, long)).truncated == [
        long
    ]  # reported again when its feature is known


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query(), "neither an image nor a text"),
        (Query(text=" \n"), "neither an image nor a text"),
        (Query(text="is blue", top_k=0), "top_k is too small"),
        (Query(image_id="nobody"), "no such image"),
    ],
)
def test_impossible_queries_are_refused(searcher: Searcher, query: Query, message: str) -> None:
    with pytest.raises(DataError, match=message):
        searcher.search([query])


def test_a_searcher_on_a_gpu_computes_without_tf32(tiny_bundle: Any) -> None:
    cudnn: Any = torch.backends.cudnn
    assert cudnn.allow_tf32
    try:
        with suppress(RuntimeError, AssertionError):  # where there is no GPU
            Searcher(bundle.load(tiny_bundle.folder), device="cuda")
        assert not cudnn.allow_tf32
    finally:
        cudnn.allow_tf32 = True
