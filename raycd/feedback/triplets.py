"""Triplets from sessions: what was liked is the target, what was skipped above it a hard negative.

A click at a position of propensity p stands for 1 / p clicks, most of which nobody made because
nobody looked there (inverse propensity weighting, Joachims et al., WSDM 2017). A result above the
last click that was not clicked was most likely seen and refused (Joachims 2002).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

from raycd.data.captions import spelling
from raycd.feedback.records import LIKED, LoggedSession

LEAST = 0.1  # propensity, so that no click counts more than ten
MOST = 100.0  # of a triplet's weight beside the median one: a best seller is not all there is
NEGATIVES = 5  # of a triplet


@dataclass(frozen=True)
class Learned:
    """A triplet from feedback."""

    reference: str
    text: str
    target: str
    weight: float
    """What it counts in the loss; their mean is 1."""
    support: int
    """Searches in which the target was liked."""
    negatives: tuple[str, ...]


@dataclass
class _Pair:
    """What is known of a target of a query."""

    weight: float = 0.0
    support: int = 0
    dismissed: dict[str, None] = field(default_factory=dict)
    above: dict[str, None] = field(default_factory=dict)


def learn(
    found: Iterable[LoggedSession],
    propensity_K: Sequence[float] | None,
    *,
    support: int,
    texts: Mapping[str, str] | None = None,
    negatives: int = NEGATIVES,
) -> list[Learned]:
    """Return the triplets of sessions that have a reference of the gallery and a text.

    Texts that differ in their spelling alone (`captions.spelling`) are one, called as it was first.
    Where a search ended in a purchase, its clicks are not targets; likewise for the cart. What is a
    target of a query is no negative of it.

    Args:
        propensity_K: Of each position, a later one having that of the last; None: every click
            counts alike.
        support: Least number of searches in which a target was liked.
        texts: Hash -> text, for searches of which the hash alone is kept.
        negatives: Of a triplet, at most: the last above its target first.
    """
    pairs: dict[tuple[str, str], dict[str, _Pair]] = {}
    called: dict[str, str] = {}
    for session in found:
        search = session.search
        text = search.text or (texts or {}).get(search.text_hash or "")
        if not search.reference or not text:
            continue
        text = called.setdefault(spelling(text), text)
        targets = strongest(session)
        for target in targets:
            pair = pairs.setdefault((search.reference, text), {}).setdefault(target, _Pair())
            pair.weight += 1 / _propensity(propensity_K, search.first, search.results.index(target))
            pair.support += 1
            refused = [one for one in dismissed(session) if one != search.reference]
            pair.dismissed |= dict.fromkeys(refused)
            pair.above |= dict.fromkeys(skipped(session, search.reference))
    made = [
        Learned(
            *(reference, text, target, pair.weight, pair.support),
            tuple(one for one in pair.dismissed | pair.above if one not in own)[:negatives],
        )
        for (reference, text), own in pairs.items()
        for target, pair in own.items()
        if pair.support >= support and target != reference
    ]
    if not made:
        return []
    most = MOST * median(one.weight for one in made)
    mean = fmean(min(one.weight, most) for one in made)
    return [replace(one, weight=min(one.weight, most) / mean) for one in made]


def strongest(session: LoggedSession) -> list[str]:
    """Return the results with the strongest action of LIKED that there is, in their order."""
    kept = {one: own for one, own in session.actions.items() if "dismiss" not in own}
    for action in reversed(LIKED):
        chosen = [one for one in session.search.results if action in kept.get(one, ())]
        if chosen:
            return chosen
    return []


def dismissed(session: LoggedSession) -> list[str]:
    """Return the results that were dismissed, in their order."""
    actions = session.actions
    return [one for one in session.search.results if "dismiss" in actions.get(one, ())]


def skipped(session: LoggedSession, reference: str) -> list[str]:
    """Return what was not liked above the last result that was, the last first."""
    results, liked = session.search.results, session.liked
    last = max((position for position, one in enumerate(results) if one in liked), default=0)
    return [one for one in results[:last][::-1] if one not in liked and one != reference]


def _propensity(propensity_K: Sequence[float] | None, first: int, position: int) -> float:
    if propensity_K is None or len(propensity_K) == 0:
        return 1.0
    return max(LEAST, float(propensity_K[min(first + position, len(propensity_K) - 1)]))
