"""What can be found, beside its features: ids, categories, attributes and the places of the picture files.

A position is an image's row in the gallery, and in the index that was built from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

KEPT_MASKS = 64  # of the filters asked for last: a byte an image each


class Gallery:
    """The images of a bundle, in the order of its index.

    Args:
        table: A `bundle.gallery_table`; its features are not kept.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table.drop_columns(["feature"]) if "feature" in table.column_names else table
        self._table = self._table.combine_chunks()
        self._positions = {image_id: place for place, image_id in enumerate(self._table["image_id"].to_pylist())}
        self._mask = lru_cache(KEPT_MASKS)(self._made)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def position(self, image_id: str) -> int | None:
        """Where the image is; None where it is not in the gallery."""
        return self._positions.get(image_id)

    def image_id(self, position: int) -> str:
        """The image at a position."""
        return str(self._table["image_id"][position].as_py())

    def path(self, position: int) -> str | None:
        """Path or URI of the image's file, where it has one. Not for answers."""
        path: str | None = self._table["path"][position].as_py()
        return path

    def category(self, position: int) -> str:
        """The first category of the image; empty where it has none."""
        return next(iter(self._table["categories"][position].as_py() or []), "")

    def attributes(self, position: int) -> dict[str, str]:
        """The attributes of the image."""
        return dict(self._table["attributes"][position].as_py() or [])

    def mask(
        self, categories: Sequence[str] = (), attributes: Mapping[str, Sequence[str]] | None = None
    ) -> Mask | None:
        """Images (G,) in one of the categories and with one of the values in each attribute; None: all."""
        wanted = {name: tuple(sorted(set(values))) for name, values in (attributes or {}).items()}
        if not categories and not wanted:
            return None
        return self._mask(tuple(sorted(set(categories))), tuple(sorted(wanted.items())))

    def _made(self, categories: tuple[str, ...], attributes: tuple[tuple[str, tuple[str, ...]], ...]) -> Mask:
        mask = np.ones(len(self), np.bool_)
        if categories:
            mask &= self._having(self._table["categories"], lambda listed: pc.is_in(listed, pa.array(categories)))
        for name, values in attributes:
            mask &= self._having(
                self._table["attributes"],
                lambda entry, name=name, values=values: pc.and_(
                    pc.equal(entry.field("key"), name), pc.is_in(entry.field("value"), pa.array(values, pa.string()))
                ),
            )
        mask.flags.writeable = False  # it is kept
        return mask

    def _having(self, column: pa.ChunkedArray, matches: Any) -> Mask:
        """The images one of whose list's entries matches."""
        lists = column.combine_chunks()
        parents, entries = _flat(lists)
        mask = np.zeros(len(self), np.bool_)
        mask[parents[matches(entries).to_numpy(zero_copy_only=False)]] = True
        return mask

    def category_counts(self) -> dict[str, int]:
        """Images of each category, most of them first."""
        _, names = _flat(self._table["categories"].combine_chunks())
        return dict(Counter(names.to_pylist()).most_common())

    def attribute_counts(self) -> dict[str, dict[str, int]]:
        """Images of each value of each attribute, by name; the values most of them first."""
        _, entries = _flat(self._table["attributes"].combine_chunks())
        pairs = Counter(zip(entries.field("key").to_pylist(), entries.field("value").to_pylist(), strict=True))
        counts: dict[str, dict[str, int]] = {}
        for (name, value), count in pairs.most_common():
            counts.setdefault(name, {})[value] = count
        return dict(sorted(counts.items()))


def _flat(lists: pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """The entries of all lists (or maps) in one array, and the row that each came from."""
    if pa.types.is_map(lists.type):
        entry = pa.struct([("key", lists.type.key_type), ("value", lists.type.item_type)])
        lists = lists.cast(pa.list_(entry))
    return pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
