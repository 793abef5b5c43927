"""The rows of a table file: Parquet (.parquet), CSV (.csv) or JSON Lines (.jsonl, .ndjson).

Everything that goes wrong while a table is parsed becomes a `DataError` that names the file, and the line where known.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from raycd.data.folder import Folder
from raycd.errors import DataError

Row = Mapping[str, Any]


def read(folder: Folder, name: str, wanted: Sequence[str], *, others: bool = False) -> tuple[list[Row], list[str]]:
    """The rows of a table, and the names of all its columns. A column of the first row is in every row.

    Of Parquet and CSV only the columns in `wanted` are read; with `others` those of texts, numbers and booleans, too.
    All columns of CSV are text, as they stand in the file: "007" stays "007".
    """
    data, extension = folder.read(name), posixpath.splitext(name)[1].lower()
    if extension in (".jsonl", ".ndjson"):
        return _json_lines(data, name)
    if extension not in (".csv", ".parquet"):
        raise DataError(f"{name} is in an unknown format", got=extension, expected=".parquet, .csv, .jsonl or .ndjson")
    table = _arrow(data, name, extension)
    columns = [field.name for field in table.schema if field.name in wanted or (others and _plain(field.type))]
    return table.select(columns).to_pylist(), table.column_names


def _plain(kind: pa.DataType) -> bool:
    """Whether a column holds texts, numbers or booleans; not lists, dates or bytes."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = ("is_string", "is_large_string", "is_boolean", "is_integer", "is_floating")
    return any(getattr(pa.types, test)(kind) for test in tests)


def _arrow(data: bytes, name: str, extension: str) -> pa.Table:
    try:
        if extension == ".parquet":
            return pyarrow.parquet.read_table(BytesIO(data))
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        with pyarrow.csv.open_csv(BytesIO(data), parse_options=parse) as header:
            text = dict.fromkeys(header.schema.names, pa.string())
        convert = pyarrow.csv.ConvertOptions(column_types=text)
        return pyarrow.csv.read_csv(BytesIO(data), parse_options=parse, convert_options=convert)
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
