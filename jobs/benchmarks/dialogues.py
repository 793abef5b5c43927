"""Sessions of edits on the demo's garments: the whole history against the last image alone.

A simulated user means one garment of the gallery, begins with another that differs in three or four
attributes, and says one difference at each turn, between the result that they look at and the one
they mean. They have found it when a garment of its description is among the first ten.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycd import bundle, progress
from raycd.config import Config
from raycd.data.demo.garments import CHOICES, Garment, differences
from raycd.data.demo.wording import phrase
from raycd.errors import ConfigError
from raycd.runtime import pipeline
from raycd.search import history
from raycd.search.query import History, Query
from raycd.search.searcher import Searcher

DIALOGUES, TURNS, FIRST = 1000, 4, 10
APART = (3, 4)  # differences of the image that a dialogue begins with
TRIES = 1000  # for each dialogue: of the demo's garments one pair in fifteen is one
BATCH = 256


class Said(NamedTuple):
    """A turn of a dialogue: what the user looks at, says, and what was before."""

    image_id: str
    text: str
    before: History | None


Way = Callable[[Said], dict[str, Any]]
"""The fields of the query that a turn becomes."""


def last_image(said: Said) -> dict[str, Any]:
    """Begin anew at each turn, with the result that the user looks at."""
    return {"image_id": said.image_id, "text": said.text}


def texts(said: Said) -> dict[str, Any]:
    """Go on from the history with a text alone."""
    return {"text": said.text, "history": said.before} if said.before else last_image(said)


def texts_and_image(said: Said) -> dict[str, Any]:
    """Go on from the history with the result that the user looks at."""
    return {**last_image(said), "history": said.before}


WAYS: Mapping[str, Way] = {
    "the last image alone": last_image,
    "history, text": texts,
    "history, text and image": texts_and_image,
}
LOOKS = {"first result": 1, f"best of {FIRST}": FIRST}
"""How many of the results the user looks at, to go on from the one most like what they mean."""


class Garments:
    """The garments of a bundle, and the searcher that finds them."""

    def __init__(self, folder: Path) -> None:
        loaded = bundle.load(folder)
        self.searcher = Searcher(loaded, text_cache=100_000)
        rows = loaded.gallery.select(["image_id", "categories", "attributes"]).to_pylist()
        self.garments = {
            row["image_id"]: _garment(row["categories"], dict(row["attributes"])) for row in rows
        }


def _garment(categories: Sequence[str], attributes: Mapping[str, str]) -> Garment:
    if not set(CHOICES) - {"accent"} <= set(attributes):
        raise ConfigError(
            "the bundle's gallery is not the demo's: nobody knows its garments",
            got=f"attributes {', '.join(attributes) or 'none'}",
            do="train the demo first: make demo",
        )
    # One that cannot be seen is like any other
    return Garment(categories[0], **{name: attributes.get(name, "") for name in CHOICES})


def measure(config: Config, flags: argparse.Namespace) -> dict[str, Any]:
    """Return how many dialogues of each kind have found their garment by each turn, in percent.

    And the differences from beginning anew after the last turn, with 95 % intervals over dialogues.
    """
    gallery = Garments(Path(pipeline.run_folder(config).root, "bundle"))
    pairs = drawn(gallery.garments, flags.images or DIALOGUES, seed=config.seed)
    rows: dict[str, Any] = {"dialogues": len(pairs)}
    with progress.Bar("dialogues", total=len(LOOKS) * len(WAYS) * TURNS, unit="turns") as bar:
        for looks, count in LOOKS.items():
            found = {
                name: held(gallery, pairs, way, looks=count, advance=lambda: bar.advance(1))
                for name, way in WAYS.items()
            }
            for name, found_TN in found.items():
                shares = (100 * found_TN.mean(axis=1)).round(1)
                rows[f"{looks}, {name}: found by turn 1 to {TURNS}, %"] = " ".join(map(str, shares))
            plain_N = found["the last image alone"][-1]
            for name in list(WAYS)[1:]:
                rows[f"{looks}, {name}: beyond the last image, points"] = _interval(
                    100.0 * (found[name][-1].astype(float) - plain_N)
                )
    return rows


def _interval(points_N: NDArray[np.float64]) -> str:
    half = 1.96 * points_N.std(ddof=1) / len(points_N) ** 0.5
    mean = points_N.mean()
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def drawn(garments: Mapping[str, Garment], count: int, *, seed: int) -> list[tuple[str, str]]:
    """Draw pairs of an image to begin with and the one that is meant, of one category.

    Raises ConfigError where hardly any two images are such a pair.
    """
    rng, ids, pairs = np.random.default_rng(seed), list(garments), list[tuple[str, str]]()
    for _ in range(TRIES * count):
        start, target = (ids[number] for number in rng.integers(len(ids), size=2).tolist())
        one, other = garments[start], garments[target]
        if one.category == other.category and len(differences(one, other)) in APART:
            pairs.append((start, target))
            if len(pairs) == count:
                return pairs
    raise ConfigError(
        "the gallery has too few garments to talk about",
        got=f"{len(pairs):,} in {TRIES * count:,} draws of two of its {len(ids):,}",
        expected=f"{count:,} of one category that differ in {' or '.join(map(str, APART))} "
        "attributes",
        do="draw more: --data.synthetic.val_images",
    )


def held(
    gallery: Garments,
    pairs: Sequence[tuple[str, str]],
    way: Way,
    *,
    looks: int,
    advance: Callable[[], None] = lambda: None,
) -> NDArray[np.bool_]:
    """Hold the dialogues and return (turns, N) which have found what was meant by each turn."""
    rng, garments = np.random.default_rng(0), gallery.garments
    at = [start for start, _ in pairs]  # what each user looks at
    before: list[History | None] = [None] * len(pairs)
    found_TN = np.zeros((TURNS, len(pairs)), np.bool_)
    for turn in range(TURNS):
        found_TN[turn] = found_TN[turn - 1] if turn else False
        going = np.flatnonzero(~found_TN[turn]).tolist()
        for first in range(0, len(going), BATCH):
            some = going[first : first + BATCH]
            said = [
                Said(at[n], _difference(rng, garments[at[n]], garments[pairs[n][1]]), before[n])
                for n in some
            ]
            results, after = _searched(gallery, said, way)
            for n, result, kept in zip(some, results, after, strict=True):
                target, before[n] = garments[pairs[n][1]], kept
                apart = [len(differences(garments[one], target)) for one in result]
                found_TN[turn, n] = 0 in apart
                at[n] = result[int(np.argmin(apart[:looks]))]
        advance()
    return found_TN


def _difference(rng: np.random.Generator, shown: Garment, target: Garment) -> str:
    name = str(rng.choice(differences(shown, target)))
    return phrase(rng, name, getattr(target, name))


def _searched(
    gallery: Garments, said: Sequence[Said], way: Way
) -> tuple[list[list[str]], list[History]]:
    """Return the ids that each turn finds, and its history."""
    searcher, view = gallery.searcher, gallery.searcher.view
    prepared = []
    for one in said:
        allowed = view.allowed([gallery.garments[one.image_id].category])
        query = Query(top_k=FIRST, allowed=allowed, exclude_reference=True, **way(one))
        prepared.append(searcher.prepare(query))
    answers = searcher.answer(prepared)
    after = [
        history.after(query, answer.image_D)
        for query, answer in zip(prepared, answers, strict=True)
        if answer.image_D is not None
    ]
    return [[one.image_id for one in answer.results] for answer in answers], after
