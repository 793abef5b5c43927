"""What can be found, beside its features: ids, categories, attributes and the places of the picture
files.

A position is an image's row in the gallery, and in the index that was built from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raycd.index.structure import Mask

SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("categories", pa.list_(pa.string())),
        ("path", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
    ]
)
"""What is known of each image, beside its feature."""

KEPT_MASKS = 64  # of the filters asked for last: a byte an image each


class Gallery:
    """The images of a bundle, in the order of its index.

    Args:
        table: A `bundle.gallery_table`, kept as `table` without its features.
    """

    def __init__(self, table: pa.Table) -> None:
        table = table.drop_columns(["feature"]) if "feature" in table.column_names else table
        self.table = table.combine_chunks()
        self._image_ids: list[str] = self.table["image_id"].to_pylist()
        self._positions = {image_id: place for place, image_id in enumerate(self._image_ids)}
        self._categories, self._attributes = (
            _Lists(self._column("categories")),
            _Lists(self._column("attributes")),
        )
        self._mask = lru_cache(KEPT_MASKS)(self._made)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def position(self, image_id: str) -> int | None:
        """Where the image is; None where it is not in the gallery."""
        return self._positions.get(image_id)

    def image_id(self, position: int) -> str:
        """The image at a position."""
        return self._image_ids[position]

    def path(self, position: int) -> str | None:
        """Path or URI of the image's file, where it has one. Not for answers."""
        path: str | None = self.table["path"][position].as_py()
        return path

    def category(self, position: int) -> str:
        """The first category of the image; empty where it has none."""
        return next(iter(self._categories[position]), "")

    def attributes(self, position: int) -> dict[str, str]:
        """The attributes of the image."""
        return dict(self._attributes[position])

    def mask(
        self, categories: Sequence[str] = (), attributes: Mapping[str, Sequence[str]] | None = None
    ) -> Mask | None:
        """Images (G,) in one of the categories and with one of the values in each attribute; None:
        all.
        """
        wanted = {name: tuple(sorted(set(values))) for name, values in (attributes or {}).items()}
        if not categories and not wanted:
            return None
        return self._mask(tuple(sorted(set(categories))), tuple(sorted(wanted.items())))

    def _made(
        self, categories: tuple[str, ...], attributes: tuple[tuple[str, tuple[str, ...]], ...]
    ) -> Mask:
        mask = np.ones(len(self), np.bool_)
        if categories:
            mask &= self._having(self._categories, categories.__contains__)
        for name, values in attributes:
            if not mask.any():
                break
            mask &= self._having(self._attributes, {(name, value) for value in values}.__contains__)
        mask.flags.writeable = False  # it is kept
        return mask

    def _having(self, lists: _Lists, wanted: Callable[[Any], bool]) -> Mask:
        """The images one of whose entries is wanted."""
        mask = np.zeros(len(self), np.bool_)
        mask[
            lists.rows[np.array([wanted(value) for value in lists.values], np.bool_)[lists.codes]]
        ] = True
        return mask

    def _column(self, name: str) -> pa.Array:
        return self.table[name].combine_chunks()

    def category_counts(self, among: Mask | None = None) -> dict[str, int]:
        """Images of each category, most of them first; `among` (G,) counts some of the images."""
        return dict(self._categories.counts(among))

    def attribute_counts(self, among: Mask | None = None) -> dict[str, dict[str, int]]:
        """Images of each value of each attribute, by name; the values most of them first."""
        counts: dict[str, dict[str, int]] = {}
        for (name, value), count in self._attributes.counts(among):
            counts.setdefault(name, {})[value] = count
        return dict(sorted(counts.items()))


class _Lists:
    """A column of lists, or of maps as lists of pairs, whose few distinct entries are kept once.

    Attributes:
        values: The distinct entries.
        codes: Of every entry, which value it is.
        rows: Of every entry, the row that it stands in.
    """

    def __init__(self, lists: pa.Array) -> None:
        if pa.types.is_map(lists.type):
            lists = lists.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())])))
        entries = pc.list_flatten(lists)
        if pa.types.is_struct(entries.type):
            pairs = zip(
                entries.field("key").to_pylist(), entries.field("value").to_pylist(), strict=True
            )
            known: dict[Any, int] = {}
            self.codes = np.fromiter(
                (known.setdefault(pair, len(known)) for pair in pairs), np.int32, len(entries)
            )
            self.values: list[Any] = list(known)
        else:
            encoded = entries.dictionary_encode()
            self.codes, self.values = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        self.rows = pc.list_parent_indices(lists).to_numpy()
        self._ends = np.cumsum(np.bincount(self.rows, minlength=len(lists)))

    def __getitem__(self, row: int) -> list[Any]:
        start = self._ends[row - 1] if row else 0
        return [self.values[code] for code in self.codes[start : self._ends[row]].tolist()]

    def counts(self, among: Mask | None = None) -> list[tuple[Any, int]]:
        """Rows of each value, most of them first, then in the order in which they come; of all rows
        or of a mask's.
        """
        codes = self.codes if among is None else self.codes[among[self.rows]]
        found = np.bincount(codes, minlength=len(self.values))
        return [(self.values[code], int(found[code])) for code in np.argsort(-found, kind="stable")]
