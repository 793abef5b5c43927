"""What a filter asks for that no image has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from raycd.gallery.view import View
from serve import problems

SHOWN = 5  # of one answer
CANDIDATES = 1000  # names, the most frequent ones, among which the nearest is looked for


def warnings(
    view: View, category: Sequence[str], attributes: Mapping[str, Sequence[str]]
) -> list[str]:
    """A sentence for every category, attribute and value that is unknown, with the known one that
    is most like it.
    """
    unknown: list[tuple[str, str, Mapping[str, object]]] = [
        (f"no image is in the category {_short(one)}", one, view.category_counts)
        for one in category
        if one not in view.category_counts
    ]
    known = view.attribute_counts if attributes else {}
    for name, values in attributes.items():
        if name not in known:
            unknown.append((f"no image has an attribute {_short(name)}", name, known))
        else:
            had = known[name]
            unknown += [
                (f"no image has {_short(one)} as {name}", one, had)
                for one in values
                if one not in had
            ]
    told = [
        what + problems.nearest(name, islice(candidates, CANDIDATES))
        for what, name, candidates in unknown[:SHOWN]
    ]
    return (
        [*told, f"{len(unknown) - SHOWN} more filters are unknown"]
        if len(unknown) > SHOWN
        else told
    )


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:97]}...")
