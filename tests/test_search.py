from typing import Any

import numpy as np
import pytest
import torch

from raycd.errors import DataError
from raycd.model import bundle
from raycd.search import Query, Result, Searcher


@pytest.fixture(scope="module")
def searcher(tiny_bundle: Any) -> Searcher:
    return Searcher(bundle.load(tiny_bundle.folder), threads=1)


def test_results_are_the_gallery_ranked_by_the_heads_query(searcher: Searcher, tiny_bundle: Any) -> None:
    [results] = searcher.search([Query(tiny_bundle.images[0], "is blue", top_k=12)])
    parts = searcher.bundle
    with torch.inference_mode():
        image = parts.encoder.encode_images(parts.encoder.preprocess(tiny_bundle.images[0])[None])
        query = parts.head(image, parts.encoder.encode_tokens(parts.encoder.tokenize(["is blue"])))[0].numpy()
    gallery = bundle.gallery_features(parts.gallery)
    cosines = gallery @ query / np.linalg.norm(gallery, axis=1)
    scores = dict(zip(tiny_bundle.image_ids, cosines.tolist(), strict=True))
    assert {result.image_id: result.score for result in results} == pytest.approx(scores, abs=1e-5)
    assert [result.score for result in results] == sorted((result.score for result in results), reverse=True)


def test_a_result_names_the_first_category_of_its_image(searcher: Searcher, tiny_bundle: Any) -> None:
    [results] = searcher.search([Query(tiny_bundle.images[0], "is blue", top_k=12)])
    assert all(isinstance(result, Result) for result in results)
    by_id = {result.image_id: result.category for result in results}
    assert (by_id["image-0"], by_id["image-1"]) == ("shirt", "dress")


def test_a_batch_answers_as_single_queries_do_each_with_its_own_top_k(searcher: Searcher, tiny_bundle: Any) -> None:
    texts = ("is blue", "has long sleeves", "is shorter and red")
    queries = [Query(tiny_bundle.images[i], text, top_k=i + 1) for i, text in enumerate(texts)]
    together = searcher.search(queries)
    assert [len(results) for results in together] == [1, 2, 3]
    for query, results in zip(queries, together, strict=True):
        [alone] = searcher.search([query])
        assert [result.image_id for result in results] == [result.image_id for result in alone]
        assert [result.score for result in results] == pytest.approx([result.score for result in alone], abs=1e-5)


def test_top_k_is_cut_to_the_gallery_and_no_query_is_no_work(searcher: Searcher, tiny_bundle: Any) -> None:
    [results] = searcher.search([Query(tiny_bundle.images[0], "is blue", top_k=1000)])
    assert len(results) == 12
    assert searcher.search([]) == []


def test_long_texts_are_cut_and_marked(searcher: Searcher, tiny_bundle: Any) -> None:
    image = tiny_bundle.images[0]
    assert not searcher.prepare(Query(image, "is blue")).truncated
    long = searcher.prepare(Query(image, "is blue " * 100))
    assert long.truncated
    assert len(searcher.answer([long])[0]) == 10


@pytest.mark.parametrize(("text", "top_k"), [("", 1), (" \n", 1), ("is blue", 0)])
def test_empty_texts_and_impossible_top_k_are_refused(
    searcher: Searcher, tiny_bundle: Any, text: str, top_k: int
) -> None:
    with pytest.raises(DataError):
        searcher.search([Query(tiny_bundle.images[0], text, top_k)])
