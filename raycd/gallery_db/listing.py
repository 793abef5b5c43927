"""Lists and counts of the gallery by SQL, for galleries whose images are in a search engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Numeric,
    Text,
    and_,
    case,
    cast,
    column,
    exists,
    func,
    literal,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from raycd.filters import Condition
from raycd.gallery import conditions
from raycd.gallery.conditions import Wanted
from raycd.gallery.state import Image, Page
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.tables import images

# As `conditions` has it; PostgreSQL has no larger numbers, and its \d are others' digits, too
_NUMBER = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?\Z"
_NUL = r"(?<!\\)((\\\\)*)\\u0000"  # in JSON, where the backslash is not itself escaped
VALUES = 1000  # of an attribute, the most frequent ones, and as many attributes and categories


def page(
    gallery_db: GalleryDatabase,
    categories: Sequence[str],
    attributes: Wanted,
    *,
    offset: int,
    limit: int,
    newest: bool,
) -> Page:
    """Return images in one of the categories, with the wanted attributes.

    By their versions, the newest first or last. A range takes numbers whose exponent has at most
    three digits.

    Raises:
        GalleryError: The database does not answer.
    """
    with gallery_db.reading() as connection:
        postgresql = connection.dialect.name == "postgresql"
        right: list[ColumnElement[bool]] = [~images.c.deleted]
        if categories:
            entry = _entries(images.c.categories, postgresql)
            right.append(exists().select_from(entry).where(column("value").in_(categories)))
        for name, condition in conditions.of(attributes):
            pair = _pairs(images.c.attributes, postgresql)
            its = exists().select_from(pair).where(column("key") == name)
            right_one = its.where(_holds(condition))
            right.append(right_one | ~its if condition.holds_without else right_one)
        order = images.c.version.desc() if newest else images.c.version
        wanted = select(images).where(*right).order_by(order).offset(offset).limit(limit)
        found = connection.execute(wanted).all()
        total = connection.execute(select(func.count()).where(*right)).scalar_one()
    return Page([_image(row) for row in found], int(total))


def category_counts(gallery_db: GalleryDatabase) -> dict[str, int]:
    """Return the number of images of each category, the largest first; VALUES at most."""
    count = func.count().label("count")
    with gallery_db.reading() as connection:
        entry = _entries(images.c.categories, connection.dialect.name == "postgresql")
        value = column("value", Text)
        wanted = (
            select(value, count).select_from(images.join(entry, true())).where(~images.c.deleted)
        )
        wanted = wanted.group_by(value).order_by(count.desc(), value).limit(VALUES)
        return {name: int(size) for name, size in connection.execute(wanted)}


def attribute_counts(gallery_db: GalleryDatabase) -> dict[str, dict[str, int]]:
    """Return the number of images of each value of each attribute, the largest first.

    Of VALUES attributes and the VALUES most frequent values of each, at most.
    """
    counts: dict[str, dict[str, int]] = {}
    count = func.count().label("count")
    with gallery_db.reading() as connection:
        pair = _pairs(images.c.attributes, connection.dialect.name == "postgresql")
        name, value = column("key", Text), column("value", Text)
        wanted = (
            select(name, value, count)
            .select_from(images.join(pair, true()))
            .where(~images.c.deleted)
        )
        wanted = wanted.group_by(name, value).order_by(count.desc(), name, value)
        streamed = connection.execution_options(yield_per=VALUES).execute(wanted)
        for its_name, its_value, size in streamed:
            if its_name in counts or len(counts) < VALUES:
                values = counts.setdefault(its_name, {})
                if len(values) < VALUES:
                    values[its_value] = int(size)
    return dict(sorted(counts.items()))


def _holds(condition: Condition) -> ColumnElement[bool]:
    """Return whether the value of a pair fulfils a condition."""
    value = column("value", Text)
    right: list[ColumnElement[bool]] = [true()]
    if condition.in_ is not None:
        right.append(value.in_(condition.in_))
    if condition.not_:
        right.append(value.not_in(condition.not_))
    # A cast fails for what is no number, so that must not be cast: `and` has no order in SQL. And
    # both are numeric: PostgreSQL refuses to make a float of 1e400
    number = case((value.regexp_match(_NUMBER), cast(value, Numeric)))
    for name, compared in conditions.COMPARED.items():
        if (bound := getattr(condition, name)) is not None:
            right.append(compared(number, cast(literal(repr(bound)), Numeric)))
    return and_(*right)


def _entries(lists: Any, postgresql: bool) -> Any:
    """Return the entries of a column of JSON lists, as a table of `value`."""
    if postgresql:
        return func.jsonb_array_elements_text(_jsonb(lists)).table_valued("value")
    return func.json_each(lists).table_valued("value")


def _pairs(objects: Any, postgresql: bool) -> Any:
    """Return the pairs of a column of JSON objects, as a table of `key` and `value`."""
    if postgresql:
        return func.jsonb_each_text(_jsonb(objects)).table_valued("key", "value")
    return func.json_each(objects).table_valued("key", "value")


def _jsonb(text: Any) -> Any:
    # PostgreSQL has no NUL in a text: one in a single image would fail every page and count
    return cast(func.regexp_replace(text, _NUL, r"\1\\ufffd", "g"), JSONB)


def _image(row: Any) -> Image:
    categories, attributes = json.loads(row.categories), json.loads(row.attributes)
    return Image(row.image_id, next(iter(categories), ""), attributes, row.path)
