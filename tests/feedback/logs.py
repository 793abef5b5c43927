"""Searches and events as tests write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from raycd.api.events import Action
from raycd.feedback.records import LoggedSearch, LoggedSession


def search(query_id: str, results: Sequence[str], **changes: Any) -> LoggedSearch:
    fields: dict[str, Any] = {
        "query_id": query_id,
        "at": 1.0,
        "reference": "ref",
        "text": "is blue",
        "text_hash": None,
        "bundle": "0" * 12,
        "first": 0,
        "results": tuple(results),
        "scores": tuple(float(-position) for position in range(len(results))),
    }
    return LoggedSearch(**fields | changes)


def session(results: Sequence[str], **actions: Any) -> LoggedSession:
    """Return a session of one-letter results: session("abc", click="b", dismiss="a")."""
    changes = {
        name: actions.pop(name) for name in list(actions) if name in LoggedSearch.__annotations__
    }
    found = LoggedSession(search("q", results, **changes))
    for action, own in actions.items():
        for image_id in own:
            found.actions.setdefault(image_id, set()).add(cast(Action, action))
    return found
