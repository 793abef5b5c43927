"""A user's own images and triplets, from two tables.

Each is Parquet (.parquet), CSV (.csv) or JSON Lines (.jsonl, .ndjson).

    gallery    image_id    unique name of an image
               path        URI, absolute path, or path relative to the root; where the pictures
                           are inside Parquet files, there is none (see `parquet_images`)
               category    optional; which gallery the image is in; "all" where absent
               split       optional; "train", "val" or "test"; without it, train and val
               attributes  optional; an object, {"colour": "blue"}: a struct, a map or JSON text
    triplets   reference   image_id
               target      image_id; may be null in split test only
               targets     instead of target or beside it: image_ids that are all right, the first
                           of which is trained on; a list, or one string as for captions
               captions    a list of texts (also written as text, in JSON or as pandas does), or one
                           string with "|" between them; or `caption`, one text
               triplet_id  optional; "<category>/<split>/<row>" where absent
               category    optional; the gallery that is searched; "all" where absent
               split       optional; "train" where absent
               weight      optional; what a train triplet counts in the loss of stage 2, above 0
               negatives   optional; image_ids that are known to be wrong, a list or one string as
                           for targets: hard negatives of this triplet in stage 2

An image may have several rows, one for each gallery that it is in, all with the same path; a row
that occurs twice counts once. Where a gallery has no column `attributes`, its further columns of
texts, numbers and booleans are the attributes (see `attributes`). Reference and target must be in
the gallery of their triplet's category and split. Other columns are ignored. Rows are counted from
1, without the header.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from raycd.data import attributes, captions, json_text, parquet_images, rows
from raycd.data.attributes import Attributes
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.folder import Folder
from raycd.data.rows import Row
from raycd.data.schema import Dataset
from raycd.errors import DataError

CATEGORY = "all"
SPLITS = ("train", "val", "test")
_CATEGORY_REMEDY = (
    "`category` and `split` say which gallery a triplet searches, in both tables alike; what kind "
    "of thing an image shows is an attribute: leave the column `category` out of both tables, "
    "or name it something else, such as type"
)
GALLERY_COLUMNS = ("image_id", "path", "category", "split", attributes.COLUMN)
TRIPLET_COLUMNS = (
    *("reference", "target", "targets", "captions", "caption"),
    *("triplet_id", "category", "split", "weight", "negatives"),
)


def read(root: str, triplets: str | None, gallery: str) -> Dataset:
    """Read both tables; their names are relative to `root`, absolute, or URIs. None: no triplets.

    Raises DataError with file and row for a missing column, a null, an unknown image, a split that
    is not in SPLITS, or an image_id with two paths or different attributes. Whether the image files
    exist is not checked here.
    """
    folder = Folder(root)
    builder = DatasetBuilder(_CATEGORY_REMEDY)
    images = _read_gallery(folder, builder, gallery)
    if triplets is not None:
        _read_triplets(folder, builder, triplets, images, gallery)
    paths = {image_id: image.path for image_id, image in images.items()}
    return builder.build(paths, {image_id: image.attributes for image_id, image in images.items()})


class _Image(NamedTuple):
    row: int  # the first that names it
    path: str
    attributes: Attributes


def _read_gallery(folder: Folder, builder: DatasetBuilder, name: str) -> dict[str, _Image]:
    """Add all galleries; return the images by their ids."""
    images: dict[str, _Image] = {}
    galleries: dict[tuple[str, str], dict[str, None]] = {}
    for where, number, row in _gallery_rows(folder, name):
        image_id, path = _text(row, "image_id", where), folder.resolve(_text(row, "path", where))
        image = _Image(number, path, attributes.of_row(row, GALLERY_COLUMNS, where))
        first = images.setdefault(image_id, image)
        if first[1:] != image[1:]:
            raise _differing(where, image_id, first, image)
        category = _text(row, "category", where, CATEGORY)
        for split in (_split(row, where),) if "split" in row else ("train", "val"):
            galleries.setdefault((category, split), {})[image_id] = None
    for (category, split), image_ids in galleries.items():
        builder.add_gallery(category, split, image_ids, source=name)
    return images


def _gallery_rows(folder: Folder, name: str) -> Iterator[tuple[str, int, Row]]:
    """Yield where each row stands, its number from 1, and its values."""
    for file in parquet_images.files(folder, name) or [name]:
        if file.endswith(".parquet") and parquet_images.has_pictures(folder, file):
            for at, values in parquet_images.rows(folder, file, GALLERY_COLUMNS, others=True):
                yield f"{file}, row {at + 1}", at + 1, values
            continue
        table, found = rows.read(folder, file, GALLERY_COLUMNS, others=True)
        _check_columns(file, found, "image_id", "path")
        for number, row in enumerate(table, 1):
            yield f"{file}, row {number}", number, row


def _differing(where: str, image_id: str, first: _Image, again: _Image) -> DataError:
    if first.path != again.path:
        what, got, expected = "another path", again.path, first.path
        do = "give each image an image_id of its own"
    else:
        what, got, expected = "other attributes", str(again.attributes), str(first.attributes)
        do = (
            "give an image the same in all its rows, or put what filters need "
            "in one column `attributes`"
        )
    return DataError(
        f"{where} gives an image {what}",
        got=f"{image_id}: {got}",
        expected=f"{expected}, as in row {first.row}",
        do=do,
    )


def _read_triplets(
    folder: Folder, builder: DatasetBuilder, name: str, images: Container[str], gallery: str
) -> None:
    table, found = rows.read(folder, name, TRIPLET_COLUMNS)
    _check_columns(
        name,
        found,
        "reference",
        "targets" if "targets" in found else "target",
        "caption" if "caption" in found else "captions",
    )
    for number, row in enumerate(table, 1):
        where = f"{name}, row {number}"
        category, split = _text(row, "category", where, CATEGORY), _split(row, where)
        reference = _text(row, "reference", where)
        target, *further = _targets(row, split, where)
        negatives = _negatives(row, where)
        for image_id in (reference, target, *further, *negatives):
            if image_id is not None and image_id not in images:
                raise DataError(
                    f"{where} names an unknown image",
                    got=repr(image_id),
                    expected=f"an image_id of {gallery}",
                )
        triplet_id = _text(row, "triplet_id", where, f"{category}/{split}/{number - 1}")
        texts = _captions(row, where)
        builder.add_triplet(
            TripletRow(
                triplet_id,
                category,
                split,
                reference,
                target,
                texts,
                further_targets=[image_id for image_id in further if image_id is not None] or None,
                weight=_weight(row, where),
                negatives=negatives or None,
            ),
            where=where,
        )


def _targets(row: Row, split: str, where: str) -> list[str | None]:
    """Return all right targets, each once; [None] where they are secret."""
    target, several = row.get("target"), row.get("targets")
    if several in (None, "", []) and (split != "test" or target not in (None, "")):
        return [_text(row, "target" if "target" in row else "targets", where)]
    if several in (None, "", []):
        return [None]
    first = [] if target in (None, "") else [_text(row, "target", where)]
    return list(dict.fromkeys([*first, *_ids(several, "targets", where)]))


def _negatives(row: Row, where: str) -> list[str]:
    several = row.get("negatives")
    return [] if several in (None, "", []) else _ids(several, "negatives", where)


def _ids(several: object, column: str, where: str) -> list[str]:
    values = _listed(several)
    ids = [
        text
        for value in (values if isinstance(values, list) else ())
        if isinstance(value, str | int) and not isinstance(value, bool)
        if (text := str(value).strip())
    ]
    if not ids or len(ids) < len(values):
        raise DataError(
            f"{where} has no usable {column}",
            got=json_text.shown(several),
            expected='image ids: a list, ["a", "b"], or texts with | between them',
        )
    return ids


def _weight(row: Row, where: str) -> float | None:
    value = row.get("weight")
    if value in (None, ""):
        return None
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise DataError(
            f"{where} has no usable weight",
            got=json_text.shown(value),
            expected="a number above 0; nothing counts 1",
        )
    return weight


def _listed(value: object) -> Any:
    """Return the texts of a list that is written as text, or of texts with | between them."""
    if not isinstance(value, str):
        return [value] if isinstance(value, int) else value
    with suppress(ValueError, RecursionError):  # whole numbers, too
        if isinstance(found := json_text.loads(value), list):
            return found
    try:
        listed = captions.listed(value)
    except ValueError:
        return None
    return listed or [text.strip() for text in value.split("|")]


def _captions(row: Row, where: str) -> list[str]:
    value = row["captions"] if "captions" in row else row["caption"]
    texts = value if "captions" in row else [value]
    if isinstance(value, str):
        try:
            listed = captions.listed(value)
        except ValueError as error:
            raise DataError(
                f"{where} has no usable caption",
                got=json_text.shown(value),
                expected=f'["is red", "no belt"], texts with | between them, or one text: {error}',
            ) from error
        if listed is not None or "captions" in row:
            texts = listed or [text.strip() for text in value.split("|")]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(
            f"{where} has no usable caption",
            got=json_text.shown(value),
            expected="one text or more, none null",
        )
    return texts


def _split(row: Row, where: str) -> str:
    split = _text(row, "split", where, "train")
    if split not in SPLITS:
        raise DataError(
            f"{where} names an unknown split", got=split, expected=f"one of {', '.join(SPLITS)}"
        )
    return split


def _text(row: Row, column: str, where: str, default: str | None = None) -> str:
    """Return a value as stripped text (integers too); `default` where there is no such column."""
    if default is not None and column not in row:
        return default
    value = row[column]
    text = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, str | int) or not text:
        raise DataError(
            f"{where} has no usable {column}",
            got="null" if value is None else json_text.shown(value),
            expected="a text or a whole number",
            do=f"fill {column} in"
            + (", or leave the whole column out" if default is not None else ""),
        )
    return text


def _check_columns(name: str, found: Sequence[str], *required: str) -> None:
    missing = [column for column in required if column not in found]
    if missing:
        raise DataError(
            f"{name} lacks a column",
            got=", ".join(found) or "no columns",
            expected=f"also {', '.join(missing)}",
            do="name the columns as the documentation of the manifest format does",
        )
