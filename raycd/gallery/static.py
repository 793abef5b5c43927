"""The images of a bundle without their features: ids, categories, attributes, paths of files.

A position is an image's row in the gallery, and in the index that was built from it.

Shapes: G images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cachetools import LRUCache, cached
from numpy.typing import NDArray

from raycd.filters import Condition
from raycd.gallery import conditions
from raycd.gallery.conditions import Conditions, Wanted
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
# Key of a gallery table's metadata: fingerprint of the encoder that measured its features
ENCODER = b"encoder"

_PART = 1 << 14  # ids that are Python's strings at a time
KEPT_MIB = 16  # masks of the last used filters; each has a byte for each image

MaskOf = Callable[[tuple[str, ...], Conditions], Mask]


def kept(make: MaskOf) -> MaskOf:
    """Return the same with the masks of the last used filters kept, up to KEPT_MIB."""
    masks: LRUCache[Any, Mask] = LRUCache(KEPT_MIB * 2**20, getsizeof=lambda mask: mask.nbytes)
    found: MaskOf = cached(masks, lock=Lock())(make)
    return found


class Gallery:
    """The images of a bundle, in the order of its index.

    Args:
        table: A `bundle.gallery_table`; `table` is it without features.
    """

    def __init__(self, table: pa.Table) -> None:
        table = table.drop_columns(["feature"]) if "feature" in table.column_names else table
        self.table = table.combine_chunks()
        self._image_ids = self.table["image_id"].combine_chunks()
        self._positions = _Positions(self._image_ids)
        self._categories = _Lists(self.table["categories"].combine_chunks())
        self._attributes = _Lists(self.table["attributes"].combine_chunks())
        self._mask = kept(self._make_mask)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def position(self, image_id: str) -> int | None:
        """Return the position of an image; None where it is not in the gallery."""
        return self._positions.find(image_id)

    def image_id(self, position: int) -> str:
        """Return the image at a position."""
        image_id: str = self._image_ids[position].as_py()
        return image_id

    def path(self, position: int) -> str | None:
        """Return path or URI of the image's file, if it has one; no answer may contain it."""
        path: str | None = self.table["path"][position].as_py()
        return path

    def category(self, position: int) -> str:
        """Return the first category of the image; empty where it has none."""
        return next(iter(self._categories[position]), "")

    def attributes(self, position: int) -> dict[str, str]:
        """Return the attributes of the image."""
        return dict(self._attributes[position])

    def mask(self, categories: Sequence[str] = (), attributes: Wanted | None = None) -> Mask | None:
        """Return a mask (G,) of images in one of the categories, with the wanted attributes.

        None stands for all images.
        """
        if not categories and not attributes:
            return None
        return self._mask(tuple(sorted(set(categories))), conditions.of(attributes or {}))

    def _make_mask(self, categories: tuple[str, ...], wanted: Conditions) -> Mask:
        mask = np.ones(len(self), np.bool_)
        if categories:
            mask &= self._having(self._categories, categories.__contains__)
        for name, condition in wanted:
            if not mask.any():
                break
            mask &= self._fitting(name, condition)
        mask.flags.writeable = False  # it is cached
        return mask

    def _fitting(self, name: str, condition: Condition) -> Mask:
        """Return a mask (G,) of the images whose value of an attribute is right."""
        mask = np.full(len(self), condition.holds_without)
        known = self._values.get(name)
        if known is not None:
            right = np.zeros(len(self._attributes.values), np.bool_)
            right[known.code_N] = conditions.among(condition, known.values, known.number_N)
            of_it = np.zeros(len(self._attributes.values), np.bool_)
            of_it[known.code_N] = True
            entries = of_it[self._attributes.codes]
            mask[self._attributes.rows[entries]] = right[self._attributes.codes[entries]]
        return mask

    @cached_property
    def _values(self) -> dict[str, _Values]:
        """The values of each attribute."""
        codes: dict[str, list[int]] = {}
        for code, (name, _) in enumerate(self._attributes.values):
            codes.setdefault(name, []).append(code)
        return {name: _Values.of(own, self._attributes.values) for name, own in codes.items()}

    @cached_property
    def numeric(self) -> frozenset[str]:
        """The attributes of which an image has a number."""
        known = self._values.items()
        return frozenset(name for name, own in known if not np.isnan(own.number_N).all())

    def _having(self, lists: _Lists, wanted: Callable[[Any], bool]) -> Mask:
        """Return a mask (G,) of the images one of whose entries is wanted."""
        mask = np.zeros(len(self), np.bool_)
        is_wanted = np.array([wanted(value) for value in lists.values], np.bool_)
        mask[lists.rows[is_wanted[lists.codes]]] = True
        return mask

    def category_counts(self, among: Mask | None = None) -> dict[str, int]:
        """Count the images of each category, the largest first, of all or of a mask (G,)."""
        return dict(self._categories.counts(among))

    def attribute_counts(self, among: Mask | None = None) -> dict[str, dict[str, int]]:
        """Count the images of each value of each attribute, the largest first, as above."""
        counts: dict[str, dict[str, int]] = {}
        for (name, value), count in self._attributes.counts(among):
            counts.setdefault(name, {})[value] = count
        return dict(sorted(counts.items()))

    def has_category(self, name: str | None, among: Mask | None = None) -> bool:
        """Return whether an image is in a category: of all, or of a mask (G,)."""
        known = self._categories
        if name not in known.values:
            return False
        rows = known.rows[known.codes == known.values.index(name)]
        return bool(len(rows) if among is None else among[rows].any())

    def has_attribute(self, name: str, value: str | None, among: Mask | None = None) -> bool:
        """Return whether an image has an attribute, or this value of it: of all, or of a mask."""
        known = self._values.get(name)
        if known is None:
            return False
        try:
            codes = known.code_N if value is None else known.code_N[known.values.index(value)]
        except ValueError:
            return False
        of_it = np.zeros(len(self._attributes.values), np.bool_)
        of_it[codes] = True
        rows = self._attributes.rows[of_it[self._attributes.codes]]
        return bool(len(rows) if among is None else among[rows].any())


class _Values(NamedTuple):
    """The values of an attribute."""

    code_N: NDArray[np.int64]
    """Where they are among those of all attributes."""
    values: list[str]
    number_N: NDArray[np.float64]
    """The numbers that they are; NaN where they are none."""

    @classmethod
    def of(cls, codes: list[int], pairs: list[tuple[str, str]]) -> Self:
        values = [pairs[code][1] for code in codes]
        numbers = np.fromiter(map(conditions.number, values), np.float64, len(values))
        return cls(np.array(codes), values, numbers)


class _Positions:
    """The position of each id, in 12 bytes an image: a dictionary of strings would take 190."""

    def __init__(self, image_ids: pa.Array) -> None:
        self._image_ids = image_ids
        parts = (image_ids.slice(at, _PART).to_pylist() for at in range(0, len(image_ids), _PART))
        hashes = (hash(image_id) for part in parts for image_id in part)
        hash_G = np.fromiter(hashes, np.int64, len(image_ids))
        self._order_G = np.argsort(hash_G, kind="stable").astype(np.int32)
        self._hash_G = hash_G[self._order_G]

    def find(self, image_id: str) -> int | None:
        """Return the position of an id; None where it is none of them."""
        first, end = np.searchsorted(self._hash_G, hash(image_id)), len(self._hash_G)
        while first < end and self._hash_G[first] == hash(image_id):
            position = int(self._order_G[first])
            if self._image_ids[position].as_py() == image_id:
                return position
            first += 1
        return None


class _Lists:
    """A column of lists (or maps, as lists of pairs) with few distinct entries, each kept once.

    Attributes:
        values: The distinct entries.
        codes: The index into `values` of every entry.
        rows: The row of every entry.
    """

    def __init__(self, lists: pa.Array) -> None:
        if pa.types.is_map(lists.type):
            lists = lists.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.string())])))
        entries = pc.list_flatten(lists)
        if pa.types.is_struct(entries.type):
            names, own = (entries.field(name).dictionary_encode() for name in ("key", "value"))
            pair_N = names.indices.to_numpy().astype(np.int64) * len(own.dictionary)
            pair_N += own.indices.to_numpy()
            known_N, first_N, code_N = np.unique(pair_N, return_index=True, return_inverse=True)
            order_N = np.argsort(first_N)  # as they come
            self.codes = np.argsort(order_N).astype(np.int32)[code_N]
            texts = names.dictionary.to_pylist(), own.dictionary.to_pylist()
            at = (divmod(pair, len(own.dictionary)) for pair in known_N[order_N].tolist())
            self.values: list[Any] = [(texts[0][name], texts[1][value]) for name, value in at]
        else:
            encoded = entries.dictionary_encode()
            self.codes, self.values = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        self.rows = pc.list_parent_indices(lists).to_numpy().astype(np.int32)
        self._ends = np.cumsum(np.bincount(self.rows, minlength=len(lists)))

    def __getitem__(self, row: int) -> list[Any]:
        start = self._ends[row - 1] if row else 0
        return [self.values[code] for code in self.codes[start : self._ends[row]].tolist()]

    def counts(self, among: Mask | None = None) -> list[tuple[Any, int]]:
        """Count the rows of each value, the largest first, of all rows or of a mask."""
        codes = self.codes if among is None else self.codes[among[self.rows]]
        found = np.bincount(codes, minlength=len(self.values))
        return [(self.values[code], int(found[code])) for code in np.argsort(-found, kind="stable")]
