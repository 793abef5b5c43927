"""JSON as users' files hold it: what cannot be used later is refused here, with its location."""

from __future__ import annotations

import json
import re
from typing import Any

from raycd.errors import DataError
from raycd.names import twice

# An escaped surrogate, which may be unpaired: two in a row are one character
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def loads(data: bytes | str) -> Any:
    """Return the value that `data` holds.

    Raises ValueError where it is not JSON or not UTF-8, is nested too deeply, has an object that
    names a field twice, or a text with an unpaired surrogate (such as "\\ud83d" alone), which no
    file can hold.
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
    """Raise ValueError where a text in `value`, at the path `where`, has an unpaired surrogate."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            path = f"{where}: " if where else ""
            text = value.encode(errors="backslashreplace").decode()[:100]
            raise ValueError(
                f"{path}half a character (an unpaired surrogate) in {text!r}"
            ) from error
    elif isinstance(value, dict):
        for key, entry in value.items():
            check_whole(key, where=where)
            check_whole(entry, where=f"{where}, {key}" if where else str(key))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            check_whole(entry, where=f"{where}, entry {number}" if where else f"entry {number}")


def shown(value: object) -> str:
    """Return the beginning of a value for a message.

    A deeply nested value that could be parsed may still be too deep for `repr`.
    """
    try:
        return repr(value)[:200]
    except RecursionError:
        return "a value that is nested too deep to be shown"


def wrong_shape(where: str, got: object, expected: str) -> DataError:
    """Build the error for a value that is valid JSON and not what is `expected` there."""
    return DataError(f"{where} has the wrong shape", got=shown(got), expected=expected)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object names {twice(name for name, _ in pairs)!r} twice")
    return found
