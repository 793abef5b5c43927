"""A simulated shop: whether a search learns from biased clicks, and what their correction is worth.

Users with a target in mind search the val gallery of a run, see ten results, and click by how like
the target a result is, the more the higher it stands (`raycd.feedback.users`). After each cycle the
head is trained on from where it was, on the run's own triplets and those of all clicks so far; its
next cycle is answered by what it has become. Each way of correcting has its own shop, and so has
training on without any feedback. In the end all are asked the same later searches, of pairs that
nobody has searched for before.

What is between the clicks and the figures is the real thing: `raycd.feedback` makes triplets,
stage 2 trains, `raycd.evaluate` answers and measures.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from jobs.benchmarks.measuring import check_pooled
from raycd.compare.answers import Answers
from raycd.config import Config, Protocol
from raycd.data.captions import Wording
from raycd.data.demo.garments import Garment
from raycd.data.demo.wording import compare
from raycd.data.schema import Dataset
from raycd.errors import ConfigError
from raycd.evaluate import AVERAGE, Evaluation, Metric, cached_query, evaluate
from raycd.features import Features
from raycd.feedback import explore, manifest, propensity, triplets, users
from raycd.feedback.manifest import Known
from raycd.feedback.propensity import How
from raycd.feedback.records import LoggedSearch, LoggedSession
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.fusion import Head
from raycd.progress import say
from raycd.runtime import pipeline
from raycd.runtime.stages.context import Context, own_device
from raycd.train.fuse import Fuse
from raycd.train.loop import EpochResult, Loop, Schedule, best_epoch
from raycd.train.task import Silence

CYCLES, SHOWN = 3, 10
LATER = 1.0  # later searches, as a share of those of all cycles, where there are so many pairs
EXPLORE = 0.3  # the randomised slice of the shop that has one
WAYS: dict[str, How | None] = {
    "slice": "slice",
    "examination model": "model",
    "not corrected": "none",
    "without feedback": None,  # what training on does by itself
}
EPOCHS = 12  # of each cycle: with k = 5, two of them are of pseudo triplets
METRIC = Metric()  # recall@10, the mean over categories
_HABITS = users.Habits()
_TEXTS = 256  # encoded at once


@dataclass(frozen=True)
class Shop:
    """What all shops have in common."""

    config: Config
    base: Dataset
    images: Features
    pseudo: pa.Table
    known: dict[str, Known]
    codes: dict[str, NDArray[np.int64]]
    """Attributes of each image of the gallery, as numbers."""


def measure(config: Config, asked: argparse.Namespace) -> dict[str, float | str]:
    """Return what benchmark.py prints."""
    check_pooled(config)
    run = pipeline.run(config, until="stage2").run
    context = Context(config, run)
    rng = np.random.default_rng([config.seed, 19])
    shop, wanted = _shop(context), asked.sessions
    rows = _searches(shop, rng, round(wanted * (1 + LATER)), config.data.format == "synthetic")
    log, later = rows[:wanted], rows[wanted:]
    if len(later) < 10:
        raise ConfigError(
            "the gallery has too few pairs of images that differ in one to three attributes",
            got=f"{len(rows):,}",
            expected=f"more than {wanted:,} searches (--sessions)",
            do="lower --sessions, or take a larger gallery",
        )
    texts = _encoded(
        encoders.load_saved(run.local("stage1") / "encoder").eval(),
        context.features("embed")[1],
        rows,
    )
    head, head_config = fusion.load(run.local("stage2") / "head")
    before = _asked(shop, head, texts, later)
    found: dict[str, float | str] = {
        "searches": len(log),
        "later searches": len(later),
        "recall@10 before": before.recalls[AVERAGE]["recall@10"],
        "looked at": _shown(_HABITS.looked_at(SHOWN)),
    }
    for name, how in WAYS.items():
        own, sessions = fusion.create(head_config), list[LoggedSession]()
        own.load_state_dict(head.state_dict())
        for cycle, some in enumerate(np.array_split(np.arange(len(log)), CYCLES), 1):
            began = time.monotonic()
            sessions += _cycle(shop, own, texts, [log[at] for at in some], how == "slice", cycle)
            added, values = _learned(shop, sessions, how)
            data = manifest.with_feedback(shop.base, added, shop.known)
            own = _trained(shop, own, data, texts)
            after = _asked(shop, own, texts, later)
            found[f"{name}, cycle {cycle}"] = _difference(before, after, later)
            found[f"{name}, cycle {cycle}: recall@10"] = after.recalls[AVERAGE]["recall@10"]
            found[f"{name}, cycle {cycle}: triplets"] = len(added)
            say(
                f"{name}, cycle {cycle}: {found[f'{name}, cycle {cycle}']}, "
                f"{time.monotonic() - began:.0f} s"
            )
        if values is not None:
            found[f"{name}: estimated"] = _shown(values[:SHOWN])
    return found


def _shop(context: Context) -> Shop:
    data, images = context.dataset, context.features("embed")[0]
    readable = set(images.keys.to_pylist())
    rows = {row["image_id"]: row for row in data.images.to_pylist()}
    categories: dict[str, list[str]] = {}
    for row in data.gallery.to_pylist():
        if row["split"] == "val" and row["image_id"] in readable:
            categories.setdefault(row["image_id"], []).append(row["category"])
    known = {
        one: Known(own, rows[one]["path"], dict(rows[one]["attributes"]))
        for one, own in categories.items()
    }
    codes = users.coded([one.attributes for one in known.values()])
    return Shop(
        context.config,
        data,
        images,
        pq.read_table(context.run.local("filter") / "pseudo_triplets.parquet"),
        known,
        dict(zip(known, codes, strict=True)),
    )


def _searches(
    shop: Shop, rng: np.random.Generator, count: int, drawn: bool
) -> list[dict[str, Any]]:
    """Return searches as triplets of what users have before the eyes and in mind.

    As many of each category, none of a pair that val asks.
    """
    asked = {(r["reference"], r["target"]) for r in shop.base.triplets_of("val").to_pylist()}
    share = -(-count // len(shop.base.categories()))
    by_category: list[list[dict[str, Any]]] = []
    for category in shop.base.categories():
        ids = [one for one, own in shop.known.items() if category in own.categories]
        found = users.pairs(np.array([shop.codes[one] for one in ids]), rng)
        pairs = ((ids[r], ids[t]) for r, t in found.tolist())
        chosen = islice((pair for pair in pairs if pair not in asked), share)
        by_category.append(
            [
                {
                    "category": category,
                    "split": "val",
                    "reference": reference,
                    "target": target,
                    "captions": [_worded(rng, shop.known, category, reference, target, drawn)],
                    "negatives": None,
                    "weight": None,
                }
                for reference, target in chosen
            ]
        )
    mixed = [row for own in by_category for row in own]
    return [
        mixed[at] | {"triplet_id": f"session/{n}"}
        for n, at in enumerate(rng.permutation(len(mixed))[:count])
    ]


def _worded(
    rng: np.random.Generator,
    known: dict[str, Known],
    category: str,
    reference: str,
    target: str,
    drawn: bool,
) -> str:
    """Return what a user asks: as the demo's triplets are worded, else the new values."""
    before, after = known[reference].attributes, known[target].attributes
    if drawn:
        hidden = {"accent": ""}  # an accent that nothing wears is not among the attributes
        garments = (Garment(category, **{**hidden, **own}) for own in (before, after))
        return compare(rng, *garments)[0]
    changed = [name for name, value in after.items() if before.get(name) != value]
    return " and ".join(f"{name} is {after[name]}" for name in changed)


@torch.no_grad()  # in inference mode, nothing could train on them
def _encoded(encoder: Encoder, texts: Features, rows: Sequence[dict[str, Any]]) -> Features:
    """Return text features with those of the searches beside them."""
    keys = texts.keys.to_pylist()
    new = sorted({Wording().evaluation(row["captions"]) for row in rows} - set(keys))
    parts = [
        encoder.encode_tokens(encoder.tokenize(new[at : at + _TEXTS])).cpu()
        for at in range(0, len(new), _TEXTS)
    ]
    return Features.of([*keys, *new], torch.cat([texts.values, *parts]))


def _asked(
    shop: Shop, head: Head, texts: Features, rows: Sequence[dict[str, Any]], top: int = 0
) -> Evaluation:
    """Ask searches of a head; all of its gallery is searched."""
    device = own_device(shop.config)
    query = cached_query(head.to(device).eval(), shop.images, texts, device)
    asked = manifest.held_back(rows, shop.known)
    # What a user has before the eyes is no answer
    protocol: Protocol = "original-masked"
    return evaluate(asked, "val", shop.images, query, protocol=protocol, ks=[10], top=top)


def _cycle(
    shop: Shop,
    head: Head,
    texts: Features,
    rows: Sequence[dict[str, Any]],
    explores: bool,
    cycle: int,
) -> list[LoggedSession]:
    """Return what users did with the head's answers."""
    seed = shop.config.seed
    rng, random = np.random.default_rng([seed, cycle, 20]), Random(f"{seed} {cycle}")
    top, sessions = _asked(shop, head, texts, rows, SHOWN).top, []
    for row in rows:
        best = top[row["triplet_id"]]
        drawn = explore.draw(random, len(best), EXPLORE if explores else 0.0)
        if drawn is not None and drawn[1]:
            (i, j), _ = drawn
            best[i], best[j] = best[j], best[i]
        ids = tuple(one for one, _ in best)
        search = LoggedSearch(
            *(row["triplet_id"], 0.0, row["reference"], row["captions"][0], None, "", 0, ids),
            tuple(score for _, score in best),
            None if drawn is None else drawn[0],
        )
        differing_K = (np.array([shop.codes[one] for one in ids]) != shop.codes[row["target"]]).sum(
            1
        )
        clicked_K = _HABITS.clicked(rng, differing_K)
        liked = [one for one, hit in zip(ids, clicked_K, strict=True) if hit]
        sessions.append(LoggedSession(search, {one: {"click"} for one in liked}))
    return sessions


def _learned(
    shop: Shop, sessions: Sequence[LoggedSession], how: How | None
) -> tuple[list[dict[str, Any]], list[float] | None]:
    """Return the triplets that feedback adds, and the propensities that weighted them."""
    if how is None:
        return [], None
    values = propensity.estimate(sessions, how).values
    takes = fusion.head_class(shop.config.stage2.head).takes_hard_negatives()
    most = triplets.NEGATIVES if takes else 0
    learned = triplets.learn(sessions, values, support=1, negatives=most)
    val = shop.base.triplets_of("val")
    return manifest.place(learned, shop.known, val, held_back=0.0).train, values


def _trained(shop: Shop, head: Head, data: Dataset, texts: Features) -> Head:
    """Train stage 2 on from a head; return it as it was after its best epoch."""
    config = shop.config
    task = Fuse(head.to(own_device(config)), data, shop.pseudo, shop.images, texts, config)
    schedule = replace(Schedule.of(config.stage2, config.seed), epochs=EPOCHS)
    loop = Loop(task, schedule, bar=lambda total, start: Silence())
    best: dict[str, torch.Tensor] = {}

    def each(result: EpochResult) -> None:
        if best_epoch(loop.history) == result.epoch:
            best.update({name: one.detach().clone() for name, one in head.state_dict().items()})

    loop.run(each)
    head.load_state_dict(best)
    return head


def _difference(before: Evaluation, after: Evaluation, rows: Sequence[dict[str, Any]]) -> str:
    """Return the difference of recall@10 in points with its 95% interval, paired by search."""
    categories = [row["category"] for row in rows]
    own, others = (
        Answers.of([[found.ranks[row["triplet_id"]] for row in rows]], categories, None)
        for found in (after, before)
    )
    found = own.minus(others, METRIC)
    assert found is not None, "both stand for every seed"
    if found.low is None or found.high is None:
        return "+0.00 points, the same for every search"
    return f"{100 * found.mean:+.2f} points [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"


def _shown(values: Sequence[float] | NDArray[np.float64]) -> str:
    return " ".join(f"{value:.2f}" for value in values)
