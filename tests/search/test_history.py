"""Queries that go on from an earlier one, against their definition in plain arrays."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raycd import bundle
from raycd.api import QueryRequest
from raycd.api.requests import MAX_REFERENCE
from raycd.errors import DataError
from raycd.search import history
from raycd.search.query import Answer, History, Query, Reference
from raycd.search.searcher import Searcher
from tests.search.arrays import Vector, fused, gallery_features, image_feature, text_feature, unit

FINGERPRINT = "0123456789abcdef"


@pytest.fixture(scope="module")
def searcher(tiny_bundle: Any) -> Searcher:
    return Searcher(bundle.load(tiny_bundle.folder), threads=1, text_cache=100)


def answered(searcher: Searcher, query: Query) -> Answer:
    [answer] = searcher.answer([searcher.prepare(query)])
    return answer


def check(searcher: Searcher, answer: Answer, query_D: Vector) -> None:
    expected = gallery_features(searcher) @ unit(query_D)
    got = {result.position: result.score for result in answer.results}
    assert got == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-5)


def go_on(searcher: Searcher, query: Query) -> History:
    """Return the history of what follows a query."""
    prepared = searcher.prepare(query)
    [answer] = searcher.answer([prepared])
    assert answer.image_D is not None
    return history.after(prepared, answer.image_D)


@pytest.fixture(scope="module")
def earlier(searcher: Searcher, tiny_bundle: Any) -> History:
    """Search twice: a picture that shall be blue, then a result of it that shall have a belt."""
    first = go_on(searcher, Query(tiny_bundle.images[2], "is blue", negative_text="is red"))
    return go_on(searcher, Query(image_id="image-4", text="has a belt", history=first))


def test_a_history_has_the_first_image_and_all_texts(
    searcher: Searcher, earlier: History, tiny_bundle: Any
) -> None:
    image = image_feature(searcher, tiny_bundle.images[2]).numpy()
    assert earlier.image_D == pytest.approx(image, abs=1e-5)
    assert earlier.texts == ("is blue", "has a belt")
    said = go_on(searcher, Query(text="is red"))
    assert said == History(None, ("is red",))
    shown = go_on(searcher, Query(image_id="image-3", history=said))
    assert shown.texts == ("is red",)
    assert shown.image_D is not None
    many = History(None, tuple(f"text {number}" for number in range(history.TEXTS)))
    kept = go_on(searcher, Query(text="the last", history=many)).texts
    assert kept == (*many.texts[1:], "the last")


def test_with_a_text_alone_it_is_the_first_image_and_all_texts_the_latest_first(
    searcher: Searcher, earlier: History, tiny_bundle: Any
) -> None:
    image = image_feature(searcher, tiny_bundle.images[2])
    text = text_feature(searcher, "is short and has a belt and is blue")
    expected = fused(searcher, image, text)
    asked = Query(text="is short", history=earlier, top_k=12)
    check(searcher, answered(searcher, asked), expected)
    away = unit(image_feature(searcher, tiny_bundle.images[5]))
    pushed = [Reference(tiny_bundle.images[5], weight=-0.5)]
    asked = Query(text="is short", images=pushed, history=earlier, top_k=12)
    check(searcher, answered(searcher, asked), expected - 0.5 * away)


def test_with_an_image_it_is_the_sum_of_that_and_of_the_query_alone(
    searcher: Searcher, earlier: History, tiny_bundle: Any
) -> None:
    first, own = (image_feature(searcher, tiny_bundle.images[number]) for number in (2, 7))
    texts = text_feature(searcher, "is short and has a belt and is blue")
    expected = fused(searcher, own, text_feature(searcher, "is short"))
    expected = expected + fused(searcher, first, texts)
    asked = Query(image_id="image-7", text="is short", history=earlier, top_k=12)
    check(searcher, answered(searcher, asked), expected)
    text = text_feature(searcher, "is short")
    weighed = unit(fused(searcher, own, text) + 9 * unit(text))  # weights are of the own query
    heavy = replace(asked, text_weight=10)
    check(searcher, answered(searcher, heavy), weighed + fused(searcher, first, texts))
    plain = Query(image_id="image-7", text="is short", top_k=12)
    together = searcher.search([plain, asked, plain])
    alone = [searcher.search([query])[0] for query in (plain, asked, plain)]
    for got, single in zip(together, alone, strict=True):
        assert [one.score for one in got] == pytest.approx([one.score for one in single], abs=1e-5)


def test_a_history_of_texts_alone_or_of_nothing_goes_on_too(
    searcher: Searcher, tiny_bundle: Any
) -> None:
    said = History(None, ("is red",))
    expected = unit(text_feature(searcher, "is short and is red"))
    check(searcher, answered(searcher, Query(text="is short", history=said, top_k=12)), expected)
    own = unit(image_feature(searcher, tiny_bundle.images[7]))
    expected = own + unit(text_feature(searcher, "is red"))
    check(searcher, answered(searcher, Query(image_id="image-7", history=said, top_k=12)), expected)
    none = Query(image_id="image-7", history=History(None, ()), top_k=12)
    check(searcher, answered(searcher, none), own)
    with pytest.raises(DataError, match="neither an image nor a text"):
        answered(searcher, Query(history=History(None, ())))


def test_a_weight_of_0_takes_out_the_historys_half_or_the_own_image(
    searcher: Searcher, earlier: History, tiny_bundle: Any
) -> None:
    image = image_feature(searcher, tiny_bundle.images[2])
    whole = fused(searcher, image, text_feature(searcher, "has a belt and is blue"))
    asked = Query(history=earlier, image_weight=0, top_k=12)
    check(searcher, answered(searcher, asked), whole - unit(image))
    images = [Reference(tiny_bundle.images[number]) for number in (5, 7)]
    asked = Query(images=images, history=earlier, image_weight=0, top_k=12)
    check(searcher, answered(searcher, asked), whole)


def test_a_query_of_which_nothing_is_left_is_refused(searcher: Searcher, tiny_bundle: Any) -> None:
    image = tiny_bundle.images[3]
    for query in (
        Query(history=History(None, ("is red",)), text_weight=0),
        Query(
            history=History(np.ones(searcher.bundle.encoder.dim, np.float32), ()), image_weight=0
        ),
        Query(images=[Reference(image), Reference(image, weight=-1)]),
        Query(images=[Reference(one) for one in tiny_bundle.images], image_weight=0),
        Query(text="is red", text_weight=0.5, negative_text="is red"),
    ):
        with pytest.raises(DataError, match="nothing is left of the query"):
            searcher.search([query])
        [alone, _] = searcher.answer([searcher.prepare(one) for one in (Query(text="x"), query)])
        assert not alone.is_empty


def test_texts_that_are_cut_off_are_told(searcher: Searcher) -> None:
    long = History(None, tuple(f"has {number} long buttons" for number in range(8)))
    for query in (Query(text="is red", history=long), Query(image_id="image-1", history=long)):
        [told] = searcher.prepare(query).truncated
        assert told.startswith(("is red and has 7", "has 7"))


def test_a_history_comes_back_as_it_was_but_for_its_last_digits() -> None:
    feature_D = np.random.default_rng(0).standard_normal(96).astype(np.float32)
    texts = ("is blue", "hat ein \u00e4rmelloses \u2026")
    found = unpacked(history.pack(History(feature_D, texts), FINGERPRINT))
    assert found.image_D == pytest.approx(feature_D, rel=1e-3, abs=1e-6)
    assert found.texts == texts
    assert unpacked(history.pack(History(None, texts), FINGERPRINT)) == History(None, texts)
    vast = history.pack(History(np.full(96, 1e30, np.float32), ()), FINGERPRINT)
    kept_D = unpacked(vast).image_D
    assert kept_D is not None
    assert np.isfinite(kept_D).all()


def test_a_history_is_never_longer_than_a_reference_may_be() -> None:
    feature_D = np.ones(96, np.float32)
    texts = tuple(f"{number}{'x' * 19_999}" for number in range(8))
    token = history.pack(History(feature_D, texts), FINGERPRINT)
    assert len(token) <= MAX_REFERENCE
    assert history.unpack(token, FINGERPRINT, 96, 20_000).texts == texts[-3:]
    token = history.pack(History(feature_D, ("\x01" * 60_000,)), FINGERPRINT)
    assert len(token) <= MAX_REFERENCE
    [cut] = history.unpack(token, FINGERPRINT, 96, 60_000).texts
    assert set(cut) == {"\x01"}
    assert QueryRequest(reference=token).reference == token


def unpacked(text: str) -> History:
    return history.unpack(text, FINGERPRINT, dim=96, max_text=30)


def of_bytes(*parts: bytes) -> str:
    data = b"\x01" + bytes.fromhex(FINGERPRINT[:12]) + b"".join(parts)
    return base64.urlsafe_b64encode(data).decode()


def packed(*texts: Any, dim: int = 96, value: float = 1.0) -> str:
    return history.pack(History(np.full(dim, value, np.float32), texts), FINGERPRINT)


WRONG = {
    "empty": "",
    "a letter": "x",
    "not ASCII": "\u00e4",
    "not base64": "not an answer's",
    "cut off in the head": "AQ",
    "cut off in the feature": packed()[:100],
    "cut off in the texts": packed("is blue")[:-2],
    "another version": base64.urlsafe_b64encode(b"\x02" + bytes(202)).decode(),
    "too few numbers": packed(dim=95),
    "too many numbers": packed(dim=97),
    "no direction": packed(value=0.0),
    "not finite": of_bytes(b"\x60\x00", b"\xff\x7f" * 96, b"[]"),
    "too long a text": packed("x" * 31),
    "too many texts": packed(*("x" * 9)),
    "no text": packed(3),
    "no list": of_bytes(b"\x00\x00", b'{"a": 1}'),
    "not UTF-8": of_bytes(b"\x00\x00", b'["\xff"]'),
    "half a character": of_bytes(b"\x00\x00", b'["\\ud800"]'),
    "too deep": of_bytes(b"\x00\x00", b"[" * 60_000),
}


@pytest.mark.parametrize("text", WRONG.values(), ids=list(WRONG))
def test_what_is_no_history_is_refused(text: str) -> None:
    with pytest.raises(history.NoHistory, match="not the history of an answer"):
        unpacked(text)


def test_a_history_of_another_encoder_is_told_as_such() -> None:
    image_D = np.ones(96, np.float32)
    with pytest.raises(history.OtherEncoder, match="another model"):
        unpacked(history.pack(History(image_D, ()), "f" * 64))
    said = history.pack(History(None, ("is red",)), "f" * 64)  # texts are everybody's
    assert unpacked(said).texts == ("is red",)
