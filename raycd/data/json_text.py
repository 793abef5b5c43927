"""JSON as users' files hold it: whatever cannot be used later is refused here, with what and where
it is.
"""

from __future__ import annotations

import json
import re
from typing import Any

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # may be half of a character; two halves in a row are one


def loads(data: bytes | str) -> Any:
    """Return the value that `data` holds.

    Raises ValueError: it is no JSON or no UTF-8, nested too deep, an object names a field twice, or
    a text has half a character (an unpaired surrogate, such as "\\ud83d" alone), which no file can
    hold.
    """
    text = (
        data
        if isinstance(data, str)
        else data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    )
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if _HALF.search(text):
        check_whole(value)
    return value


def check_whole(value: Any, *, where: str = "") -> None:
    """Raise ValueError where a text in `value` has half a character; `where` is the way to it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            place = f"{where}: " if where else ""
            text = value.encode(errors="backslashreplace").decode()[:100]
            raise ValueError(
                f"{place}half a character (an unpaired surrogate) in {text!r}"
            ) from error
    elif isinstance(value, dict):
        for key, entry in value.items():
            check_whole(key, where=where)
            check_whole(entry, where=f"{where}, {key}" if where else str(key))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            check_whole(entry, where=f"{where}, entry {number}" if where else f"entry {number}")


def shown(value: object) -> str:
    """Return the beginning of a value for a message; one that is nested deeply can be parsed and
    not be printed.
    """
    try:
        return repr(value)[:200]
    except RecursionError:
        return "a value that is nested too deep to be shown"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object names {twice!r} twice")
    return found
