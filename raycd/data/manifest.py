"""A user's own images and triplets, from two tables: Parquet (.parquet), CSV (.csv) or JSON Lines (.jsonl, .ndjson).

    gallery    image_id    unique name of an image
               path        URI, absolute path, or path relative to the root
               category    optional; which gallery the image is in; "all" where absent
               split       optional; "train", "val" or "test"; without it the image is in both train and val
    triplets   reference   image_id
               target      image_id; may be null in split test only
               captions    a list of texts, or one string with "|" between them; or `caption`, one text
               triplet_id  optional; "<category>/<split>/<row>" where absent
               category    optional; the gallery that is searched; "all" where absent
               split       optional; "train" where absent

An image may have several rows, one for each gallery that it is in, all with the same path; a row that stands twice
counts once. Reference and target must stand in the gallery of their triplet's category and split. Other columns are
ignored. Rows are counted from 1, without the header.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.folder import Folder
from raycd.data.schema import Dataset
from raycd.errors import DataError

CATEGORY = "all"
SPLITS = ("train", "val", "test")
GALLERY_COLUMNS = ("image_id", "path", "category", "split")
TRIPLET_COLUMNS = ("reference", "target", "captions", "caption", "triplet_id", "category", "split")

Row = Mapping[str, Any]


def read(root: str, triplets: str, gallery: str) -> Dataset:
    """Read both tables; their names are relative to `root`, or absolute, or URIs.

    Raises `DataError` with file and row for a missing column, a null, an unknown image, a split that is none of
    SPLITS, or an image_id with two paths. That the images exist is not checked here.
    """
    folder = Folder(root)
    builder = DatasetBuilder()
    paths = _read_gallery(folder, builder, gallery)
    _read_triplets(folder, builder, triplets, paths, gallery)
    return builder.build(paths)


def _read_gallery(folder: Folder, builder: DatasetBuilder, name: str) -> dict[str, str]:
    """Add all galleries; returns image id -> path."""
    paths: dict[str, str] = {}
    first_row: dict[str, int] = {}
    galleries: dict[tuple[str, str], dict[str, None]] = {}
    for number, row in enumerate(_rows(folder, name, GALLERY_COLUMNS, required=("image_id", "path")), 1):
        where = f"{name}, row {number}"
        image_id, path = _text(row, "image_id", where), folder.resolve(_text(row, "path", where))
        if paths.setdefault(image_id, path) != path:
            raise DataError(
                f"{where} gives an image another path",
                got=f"{image_id}: {path}",
                expected=f"{paths[image_id]}, as in row {first_row[image_id]}",
                do="give each image an image_id of its own",
            )
        first_row.setdefault(image_id, number)
        category = _text(row, "category", where, CATEGORY)
        for split in (_split(row, where),) if "split" in row else ("train", "val"):
            galleries.setdefault((category, split), {})[image_id] = None
    for (category, split), image_ids in galleries.items():
        builder.add_gallery(category, split, image_ids, source=name)
    return paths


def _read_triplets(folder: Folder, builder: DatasetBuilder, name: str, paths: Mapping[str, str], gallery: str) -> None:
    for number, row in enumerate(_rows(folder, name, TRIPLET_COLUMNS, required=("reference", "target")), 1):
        where = f"{name}, row {number}"
        category, split = _text(row, "category", where, CATEGORY), _split(row, where)
        reference, target = _text(row, "reference", where), row["target"]
        if split != "test" or target not in (None, ""):
            target = _text(row, "target", where)
        for image_id in (reference, target):
            if image_id and image_id not in paths:
                raise DataError(f"{where} names an unknown image", got=image_id, expected=f"an image_id of {gallery}")
        triplet_id = _text(row, "triplet_id", where, f"{category}/{split}/{number - 1}")
        texts = _captions(row, where)
        builder.add_triplet(TripletRow(triplet_id, category, split, reference, target or None, texts), where=where)


def _captions(row: Row, where: str) -> list[str]:
    value = row["captions"] if "captions" in row else [row["caption"]]
    texts = [text.strip() for text in value.split("|")] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where} has no usable caption", got=repr(value)[:200], expected="one text or more, none null")
    return texts


def _split(row: Row, where: str) -> str:
    split = _text(row, "split", where, "train")
    if split not in SPLITS:
        raise DataError(f"{where} names an unknown split", got=split, expected=f"one of {', '.join(SPLITS)}")
    return split


def _text(row: Row, column: str, where: str, default: str | None = None) -> str:
    """A value as text (whole numbers too); `default` where the table has no such column."""
    if default is not None and column not in row:
        return default
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(
            f"{where} has no usable {column}",
            got="null" if value is None else repr(value)[:200],
            expected="a text or a whole number",
            do=f"fill {column} in" + (", or leave the whole column out" if default is not None else ""),
        )
    return str(value)


def _rows(folder: Folder, name: str, columns: tuple[str, ...], required: tuple[str, ...]) -> list[Row]:
    """The rows of a table, only its documented columns. A column of the first row is in every row."""
    data, extension = folder.read(name), posixpath.splitext(name)[1].lower()
    if extension in (".jsonl", ".ndjson"):
        rows, found = _json_lines(data, name)
    elif extension in (".csv", ".parquet"):
        table = _arrow(data, name, extension, columns)
        found = table.column_names
        rows = table.select([column for column in columns if column in found]).to_pylist()
    else:
        raise DataError(f"{name} is in an unknown format", got=extension, expected=".parquet, .csv, .jsonl or .ndjson")
    missing = [column for column in required if column not in found]
    if "captions" in columns and not {"captions", "caption"} & set(found):
        missing.append("captions")
    if missing:
        raise DataError(
            f"{name} lacks a column",
            got=", ".join(found) or "no columns",
            expected=f"also {', '.join(missing)}",
            do="name the columns as the documentation of the manifest format does",
        )
    return rows


def _arrow(data: bytes, name: str, extension: str, columns: tuple[str, ...]) -> pa.Table:
    try:
        if extension == ".parquet":
            return pyarrow.parquet.read_table(BytesIO(data))
        return pyarrow.csv.read_csv(
            BytesIO(data),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name} cannot be read as {extension[1:]}", got=error, do="write the file again") from error


def _json_lines(data: bytes, name: str) -> tuple[list[Row], list[str]]:
    """Rows and the names of all their columns; a column that some rows lack is null there."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(
                f"{name}, line {number} is not valid JSON", got=error, expected="one object a line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{name}, line {number} is not an object", got=repr(row)[:200], expected="one object a line"
            )
        rows.append(row)
    found = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column) for column in found} for row in rows], found
