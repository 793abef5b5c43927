"""Warnings of filters that no image passes, and of arrangements that come to little."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

from raycd.gallery import conditions
from raycd.gallery.conditions import Wanted
from raycd.gallery.state import State
from raycd.search.query import Prepared
from serve.api import problems

SHOWN = 5  # of one answer
CANDIDATES = 1000  # the most frequent names, among which the nearest is looked for


def warnings(
    view: State, category: Sequence[str], attributes: Wanted, among: Sequence[str] = ()
) -> list[str]:
    """Return a sentence for each unknown category, attribute, value and image.

    Of the first three with the nearest that is known.
    """
    unknown: list[tuple[str, str, Callable[[], Iterable[str]]]] = [
        (f"the gallery has no image {_short(one)}", one, tuple) for one in view.missing(among)
    ]
    unknown += [
        (f"no image is in the category {_short(one)}", one, lambda: view.category_counts)
        for one in category
        if not view.has_category(one)
    ]
    numberless: list[str] = []
    for name, condition in conditions.of(attributes):
        if not view.has_attribute(name):
            what = f"no image has an attribute {_short(name)}"
            unknown.append((what, name, lambda: view.attribute_counts))
        else:
            unknown += [
                (f"no image has {_short(one)} as {name}", one, partial(_values, view, name))
                for one in (*(condition.in_ or ()), *condition.not_)
                if not view.has_attribute(name, one)
            ]
            if condition.has_range and not view.has_number(name):
                numberless.append(f"no image has a number as {name}")
    sentences = [
        what + problems.nearest(name, islice(candidates(), CANDIDATES))  # counted where needed
        for what, name, candidates in unknown[:SHOWN]
    ]
    if len(unknown) > SHOWN:
        sentences.append(f"{len(unknown) - SHOWN} more filters are unknown")
    return sentences + numberless[:SHOWN]


def _values(view: State, name: str) -> Iterable[str]:
    return view.attribute_counts.get(name, {})


def arranged(query: Prepared, results: int, total: int) -> list[str]:
    """Return a sentence for each unknown attribute of an arrangement, and for missing results."""
    asked, view = query.query, query.view
    wanted = asked.arrangement
    assert wanted is not None, "it is warned of one"
    boosted = None if wanted.boost is None else wanted.boost.attribute
    sentences = [
        f"no image has an attribute {_short(name)}"
        + problems.nearest(name, islice(view.attribute_counts, CANDIDATES))
        for name in dict.fromkeys((wanted.group_by, boosted))
        if name is not None and not view.has_attribute(name)
    ]
    if boosted is not None and view.has_attribute(boosted) and not view.has_number(boosted):
        sentences.append(f"no image has a number as {boosted}")
    if results < asked.top_k and total > wanted.depth:
        sentences.append(
            f"{results} results instead of {asked.top_k}: the first {wanted.depth} candidates "
            f"(candidates) of {total:,} images have no more"
        )
    return sentences


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:97]}...")
