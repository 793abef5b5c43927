"""A head that re-ranks, behind the searcher."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycd import bundle
from raycd.model import fusion
from raycd.model.fusion.dcnet import DcNet
from raycd.search.query import Query, Result
from raycd.search.searcher import Searcher


@pytest.fixture(scope="module")
def dcnet_bundle(bundle_with_head: Callable[[str], Path]) -> Path:
    return bundle_with_head("dcnet")


@pytest.fixture
def searcher(dcnet_bundle: Path) -> Searcher:
    return Searcher(bundle.load(dcnet_bundle), threads=1)


def ask(searcher: Searcher, **fields: Any) -> list[Result]:
    asked = {"image_id": "image-4", "text": "is blue", "top_k": 12, **fields}
    [results] = searcher.search([Query(**asked)])
    return results


def ids(results: list[Result]) -> list[str]:
    return [result.image_id for result in results]


def corrections(searcher: Searcher, results: list[Result]) -> list[float]:
    """Return the head's score of each result, of the raw features of image and text."""
    encoder, view = searcher.bundle.encoder, searcher.own
    with torch.inference_mode():
        image_1D = torch.from_numpy(view.features(np.array([4])))
        text_1D = encoder.encode_tokens(encoder.tokenize(["is blue"]))
        found = torch.from_numpy(view.vectors(np.array([result.position for result in results])))
        scores: list[float] = searcher.bundle.head.rerank(image_1D, text_1D, found[None])[
            0
        ].tolist()
    return scores


def test_results_come_in_the_order_of_cosine_plus_correction(searcher: Searcher) -> None:
    plain, found = ask(searcher, rerank_depth=0), ask(searcher)
    assert {result.rerank_score for result in plain} == {None}
    assert sorted(ids(found)) == sorted(ids(plain))
    assert ids(found) != ids(plain)
    cosines = {result.image_id: result.score for result in plain}
    for result, correction in zip(found, corrections(searcher, found), strict=True):
        assert result.score == pytest.approx(cosines[result.image_id], abs=1e-5)
        assert result.rerank_score == pytest.approx(result.score + correction, abs=1e-4)
    decided = [result.rerank_score for result in found if result.rerank_score is not None]
    assert decided == sorted(decided, reverse=True)


def test_what_lies_below_the_depth_keeps_its_order(searcher: Searcher) -> None:
    plain, found = ask(searcher, rerank_depth=0), ask(searcher, rerank_depth=5)
    assert sorted(ids(found)[:5]) == sorted(ids(plain)[:5])
    assert ids(found)[5:] == ids(plain)[5:]
    assert [result.rerank_score is None for result in found] == [False] * 5 + [True] * 7


def test_pages_filters_and_the_reference_left_out_go_with_it(searcher: Searcher) -> None:
    whole = ids(ask(searcher))
    assert ids(ask(searcher, top_k=2, offset=3)) == whole[3:5]
    without = [image_id for image_id in whole if image_id != "image-4"]
    assert ids(ask(searcher, top_k=3, exclude_reference=True)) == without[:3]
    two = ids(ask(searcher, rerank_depth=0, exclude_reference=True))[:2]
    found = ask(searcher, rerank_depth=2, exclude_reference=True)
    assert sorted(ids(found)[:2]) == sorted(two)
    dresses = searcher.view.allowed(["dress"])
    expected = [image_id for image_id in whole if int(image_id[6:]) % 2]
    assert ids(ask(searcher, allowed=dresses)) == expected
    assert ask(searcher, allowed=searcher.view.allowed(["hat"])) == []


def test_a_search_without_image_or_text_is_not_re_ranked(searcher: Searcher) -> None:
    for half in (Query(image_id="image-4"), Query(text="is blue")):
        prepared = searcher.prepare(half)
        assert (prepared.rerank_depth, prepared.depth) == (0, 10)
        [answer] = searcher.answer([prepared])
        assert {result.rerank_score for result in answer.results} == {None}
        assert not answer.reranked


def test_a_batch_is_re_ranked_as_its_queries_alone(searcher: Searcher) -> None:
    asked = [
        Query(image_id="image-1", text="is blue", top_k=3),
        Query(text="is red", top_k=12),
        Query(image_id="image-2", text="is red", top_k=12, rerank_depth=4),
    ]
    together = searcher.answer([searcher.prepare(query) for query in asked])
    assert [answer.reranked for answer in together] == [True, False, True]
    for query, answer in zip(asked, together, strict=True):
        assert ids(answer.results) == ids(searcher.search([query])[0])


def test_no_query_of_a_batch_is_re_ranked_where_one_would_be_late(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = DcNet.rerank

    def slow(*given: Any) -> torch.Tensor:
        time.sleep(0.2)
        return quick(*given)

    def reranked(seconds: float | None) -> list[bool]:
        deadline = None if seconds is None else time.monotonic() + seconds
        asked = [
            Query(image_id="image-1", text="is blue"),
            Query(text="is red", deadline=deadline),
        ]
        return [one.reranked for one in searcher.answer([*map(searcher.prepare, asked)])]

    monkeypatch.setattr(DcNet, "rerank", slow)
    assert reranked(None) == [True, False]  # which tells it how long it takes
    assert reranked(0.1) == [False, False]
    assert reranked(30.0) == [True, False]


def test_an_older_bundle_and_a_head_that_re_ranks_nothing_have_a_depth_of_0(
    tiny_bundle: Any, dcnet_bundle: Path
) -> None:
    assert Searcher(bundle.load(tiny_bundle.folder)).reranking.depth == 0
    assert Searcher(bundle.load(dcnet_bundle)).reranking.depth == 200
    assert fusion.load(dcnet_bundle / "head")[0].reranks
