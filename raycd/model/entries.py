"""What other packages add by entry points, for encoders and fusion heads alike."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from raycd.errors import RaycdError, brief


def found(group: str) -> dict[str, list[EntryPoint]]:
    """Return what installed packages add in a group, by name."""
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=group):
        points.setdefault(point.name, []).append(point)
    return points


def load(points: list[EntryPoint], what: str, error: type[RaycdError]) -> Any:
    """Return the object that one name of a group stands for; `what` says its kind.

    Raises `error` where several packages add the name, or the package cannot be imported.
    """
    first, *others = points
    if others:
        raise error(
            f"several packages add {what} {first.name}",
            got=", ".join(map(_described, points)),
            expected="one of them",
            do="uninstall the others",
        )
    try:
        return first.load()
    except Exception as problem:  # of the other package's code
        raise error(
            f"{what} {first.name} cannot be loaded",
            got=brief(problem),
            expected=_described(first),
            do="fix or uninstall that package",
        ) from problem


def _described(point: EntryPoint) -> str:
    package = f" of {point.dist.name} {point.dist.version}" if point.dist else ""
    return f"{point.value}{package}"
