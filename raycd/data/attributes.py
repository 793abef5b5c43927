"""Attributes of images beside their category, which searches filter by: {"colour": "blue"}.

A value is text. Numbers and booleans become the text that JSON has for them (7, 0.5, true), whole
floats that of the whole number. A value that is null or empty is left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from raycd.data import json_text
from raycd.data.folder import Folder

FILE = "attributes.json"  # {image_id: {name: value}}, optional, in the root of a data set
COLUMN = "attributes"  # of a user's own gallery table

Attributes = dict[str, str]


def read(folder: Folder) -> dict[str, Attributes]:
    """Return image id -> attributes from FILE, empty where the file is absent.

    Raises DataError where the file is malformed.
    """
    if FILE not in folder.names(""):
        return {}
    where, content = folder.resolve(FILE), folder.json(FILE)
    if not isinstance(content, dict):
        raise json_text.wrong_shape(where, content, "an object: image id -> {name: value}")
    return {
        image_id: _of_object(given, f"{where}, image {image_id}")
        for image_id, given in content.items()
    }


def of_row(row: Mapping[str, Any], documented: tuple[str, ...], where: str) -> Attributes:
    """Return the attributes of one row of a table: those in COLUMN, or else the other columns.

    COLUMN holds an object, a map or an object in JSON; anything else is a DataError. Without it,
    each column that is not `documented` is an attribute, except those whose values are not text,
    numbers or booleans, those without a name, and those whose name begins with an underscore, such
    as the index that pandas writes.
    """
    if COLUMN in row:
        return _of_column(row[COLUMN], where)
    others = {name.strip(): _text(row[name]) for name in row if name not in documented}
    return {name: text for name, text in others.items() if text and name and name[0] != "_"}


def _of_column(value: Any, where: str) -> Attributes:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json_text.loads(value)
        except (ValueError, RecursionError) as error:
            raise json_text.wrong_shape(
                f"{where}, {COLUMN}", value, f"an object in JSON ({error})"
            ) from error
    if isinstance(value, list) and all(isinstance(pair, tuple) for pair in value):
        value = dict(value)  # a map of Arrow
    return _of_object(value, f"{where}, {COLUMN}")


def _of_object(given: Any, where: str) -> Attributes:
    if not isinstance(given, dict):
        raise json_text.wrong_shape(where, given, "an object: name -> value")
    attributes: Attributes = {}
    for name, value in given.items():
        text = "" if value is None else _text(value)
        if not isinstance(name, str) or not name.strip() or text is None:
            raise json_text.wrong_shape(
                where, {name: value}, "a name, and as its value a text, a number or true or false"
            )
        if text:
            attributes[name.strip()] = text
    return attributes


def _text(value: object) -> str | None:
    """Return the value as stripped text; None unless it is text, a finite number or a boolean."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        text = f"{value:f}"  # Decimal.normalize would round to 28 digits
        short = text.rstrip("0").rstrip(".") if "." in text else text
        return short if value.is_finite() else None
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return repr(value) if isinstance(value, float) and math.isfinite(value) else None
