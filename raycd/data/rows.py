"""The rows of a table file: Parquet (.parquet), CSV (.csv) or JSON Lines (.jsonl, .ndjson).

Every failure to parse a table becomes a DataError that names the file, and the line where known.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from raycd.data import json_text
from raycd.data.folder import Folder
from raycd.errors import DataError

Row = Mapping[str, Any]


def read(
    folder: Folder, name: str, wanted: Sequence[str], *, others: bool = False
) -> tuple[list[Row], list[str]]:
    """Return the rows of a table and the names of all its columns; each row has all of them.

    Of Parquet and CSV only the columns in `wanted` are read; with `others`, also those of texts,
    numbers and booleans. All columns of CSV are text as written in the file: "007" stays "007".
    Spaces around a column's name do not count, and columns without a name are ignored; two columns
    of one name that would be read are a DataError.
    """
    data, extension = folder.read(name), posixpath.splitext(name)[1].lower()
    if extension in (".jsonl", ".ndjson"):
        return _json_lines(data, name)
    if extension not in (".csv", ".parquet"):
        raise DataError(
            f"{name} is in an unknown format",
            got=extension,
            expected=".parquet, .csv, .jsonl or .ndjson",
        )
    table = _arrow(data, name, extension)
    names = [field.name.strip() for field in table.schema]
    read = [
        index
        for index, (column, field) in enumerate(zip(names, table.schema, strict=True))
        if column in wanted or (others and column and _plain(field.type))
    ]
    chosen = [names[index] for index in read]
    _refuse_twice(chosen, names, name)
    rows: list[Row] = table.select(read).rename_columns(chosen).to_pylist()
    return rows, [column for column in names if column]


def _refuse_twice(read: Sequence[str], names: Sequence[str], table: str) -> None:
    twice = [column for column in dict.fromkeys(read) if read.count(column) > 1]
    if twice:
        raise DataError(
            f"{table} has {read.count(twice[0])} columns {twice[0]!r}",
            got=", ".join(name or "(no name)" for name in names),
            expected="each name once",
            do="rename one of them or leave it out; two captions of a triplet are one column "
            "`captions`, a list of texts or one text with | between them",
        )


def _plain(kind: pa.DataType) -> bool:
    """Return whether a column holds texts, numbers or booleans, not lists, dates or bytes."""
    kind = (
        kind.value_type
        if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind)
        else kind
    )
    tests = ("string", "large_string", "string_view", "boolean", "integer", "floating", "decimal")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _arrow(data: bytes, name: str, extension: str) -> pa.Table:
    try:
        if extension == ".parquet":
            table = pyarrow.parquet.ParquetFile(BytesIO(data)).read()
            table.validate(full=True)  # refuses texts that are not UTF-8
            return table
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        with pyarrow.csv.open_csv(BytesIO(data), parse_options=parse) as header:
            text = dict.fromkeys(header.schema.names, pa.string())
        convert = pyarrow.csv.ConvertOptions(column_types=text)
        return pyarrow.csv.read_csv(BytesIO(data), parse_options=parse, convert_options=convert)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name} cannot be read as {extension[1:]}", got=error, do="write the file again"
        ) from error


def _json_lines(data: bytes, name: str) -> tuple[list[Row], list[str]]:
    """Return rows and the names of all their columns; a column that a row lacks is null there."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json_text.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{name}, line {number} is not valid JSON", got=error, expected="one object a line"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{name}, line {number} is not an object",
                got=json_text.shown(row),
                expected="one object a line",
            )
        names = [column.strip() for column in row]
        _refuse_twice(names, names, f"{name}, line {number}")
        rows.append(dict(zip(names, row.values(), strict=True)))
    found = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column) for column in found} for row in rows], found
