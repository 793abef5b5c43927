"""Triplets from sessions: targets, their weights, and hard negatives."""

from __future__ import annotations

import numpy as np
import pytest

from raycd.feedback.records import Event, sessions
from raycd.feedback.triplets import LEAST, MOST, NEGATIVES, Learned, learn, skipped, strongest
from tests.feedback.logs import search, session


def test_a_click_is_a_target_and_what_was_skipped_above_it_a_negative() -> None:
    [made] = learn([session("abcde", click="d")], None, support=1)
    assert made == Learned("ref", "is blue", "d", 1.0, 1, ("c", "b", "a"))


def test_a_click_counts_as_many_as_its_position_hid() -> None:
    found = [session("ab", click="a", text="x"), session("ab", click="b", text="y")]
    first, second = learn(found, [1.0, 0.25], support=1)
    assert second.weight == pytest.approx(4 * first.weight)
    assert first.weight + second.weight == pytest.approx(2)
    later = learn(
        [session("ab", click="a"), session("b", first=50, click="b")], [1, 0.5], support=1
    )
    assert later[1].weight == pytest.approx(2 * later[0].weight)  # that of the last position
    most = learn([session("a", text="x", click="a"), session("cb", click="b")], [1, 0], support=1)
    assert most[1].weight == pytest.approx(most[0].weight / LEAST)


def test_weighted_clicks_are_as_many_for_equally_right_results_wherever_they_stand() -> None:
    rng, theta_K = np.random.default_rng(0), np.array([1.0, 0.5, 0.25])
    found = [
        session("abc", click="".join(np.array(list("abc"))[rng.random(3) < 0.6 * theta_K]))
        for _ in range(20_000)
    ]
    weights = {one.target: one.weight for one in learn(found, theta_K.tolist(), support=1)}
    assert weights == pytest.approx(dict.fromkeys("abc", 1.0), abs=0.05)
    biased = {one.target: one.weight for one in learn(found, None, support=1)}
    assert biased["a"] > 3 * biased["c"]


def test_a_purchase_counts_before_a_cart_and_a_cart_before_a_click() -> None:
    assert strongest(session("abc", click="ab", add_to_cart="b", purchase="c")) == ["c"]
    assert strongest(session("abc", click="abc", add_to_cart="b")) == ["b"]
    assert strongest(session("abc", click="ca")) == ["a", "c"]
    assert strongest(session("abc", impression="abc")) == []


def test_what_was_dismissed_is_a_negative_and_no_target() -> None:
    assert strongest(session("abc", click="ab", dismiss="a")) == ["b"]
    [made] = learn([session("abcd", click="b", dismiss="d")], None, support=1)
    assert made.negatives == ("d", "a")
    later = [session("abcdefgh", click="h"), session("ah", click="h", dismiss="a")]
    [made] = learn(later, None, support=1)
    assert made.negatives == tuple("agfed")  # whatever stood above in another search
    assert skipped(session("abc", click="c", dismiss="a"), "ref") == ["b", "a"]


def test_one_popular_query_does_not_drown_the_others() -> None:
    few = [session("ab", click="a", text=f"text {n}") for n in range(9)]
    made = learn([*few, *[session("ab", click="b", text="sale")] * 5_000], None, support=1)
    weights = [one.weight for one in made]
    assert weights[-1] == pytest.approx(MOST * weights[0])
    assert sum(weights) == pytest.approx(len(weights))


def test_what_is_right_for_a_query_is_no_negative_of_it_nor_is_its_reference() -> None:
    found = [session(["ref", *"abc"], click="c"), session("abc", click="b")]
    made = {one.target: one.negatives for one in learn(found, None, support=1)}
    assert made == {"c": ("a",), "b": ("a",)}
    [long] = learn([session("abcdefghij", click="j")], None, support=1)
    assert long.negatives == tuple("ihgfe")[:NEGATIVES]


def test_a_triplet_has_no_more_negatives_than_asked() -> None:
    for most in (2, 0):
        [made] = learn([session("abcde", click="e")], None, support=1, negatives=most)
        assert made.negatives == tuple("dc")[:most]


def test_too_little_support_a_lost_text_and_a_sent_picture_make_no_triplet() -> None:
    twice = [session("ab", click="b"), session("ba", click="b"), session("ab", click="a")]
    assert [(one.target, one.support) for one in learn(twice, None, support=2)] == [("b", 2)]
    assert learn([session("ab", click="b", reference=None)], None, support=1) == []
    hashed = session("ab", click="b", text=None, text_hash="h")
    assert learn([hashed], None, support=1) == []
    assert [one.text for one in learn([hashed], None, support=1, texts={"h": "x"})] == ["x"]
    assert learn([session(["ref"], click=["ref"])], None, support=1) == []


def test_events_meet_their_search_and_those_on_what_it_did_not_show_are_left_out() -> None:
    log = [search("one", "ab"), search("two", "ab")]
    done = [("one", "a"), ("one", "z"), ("three", "a")]
    events = [Event(f"e{n}", query, 1.0, "click", image) for n, (query, image) in enumerate(done)]
    found = {one.search.query_id: one.actions for one in sessions(log, events)}
    assert found == {"one": {"a": {"click"}}, "two": {}}


def test_spellings_of_a_text_are_one_query() -> None:
    texts = ["Is red", "is red.", "is  red", " is Red"]
    [made] = learn([session("ab", click="a", text=text) for text in texts], None, support=4)
    assert (made.text, made.support) == ("Is red", 4)
    # What one of them likes is no negative of another
    found = [session("ab", click="a", text="is red"), session("ab", click="b", text="Is red")]
    assert all(not one.negatives for one in learn(found, None, support=1))


def test_a_reference_that_is_dismissed_is_no_negative_of_its_own() -> None:
    [made] = learn([session("rab", reference="r", dismiss="ra", click="b")], None, support=1)
    assert made.negatives == ("a",)
