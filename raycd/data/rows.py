"""The rows of a table file: Parquet (.parquet), CSV (.csv) or JSON Lines (.jsonl, .ndjson).

Every failure to parse a table becomes a DataError that names the file, and the line where known.
"""

from __future__ import annotations

import csv
import posixpath
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO, TextIOWrapper
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from raycd import stores
from raycd.data import damaged, json_text
from raycd.data.folder import Folder
from raycd.errors import DataError
from raycd.names import twice
from raycd.redact import without_passwords

Row = Mapping[str, Any]

_AGAIN = "write the file again, in UTF-8"
_AGAIN_CSV = f"{_AGAIN}, with as many fields in each row as in the header"


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
    table, names = _arrow(data, name, extension, lambda field: is_read(field, wanted, others))
    columns = [column.strip() for column in table.schema.names]
    refuse_twice(columns, names, name)
    rows: list[Row] = with_decimals(table.rename_columns(columns)).to_pylist()
    return rows, [column for column in names if column]


def is_read(field: pa.Field, wanted: Sequence[str], others: bool) -> bool:
    """Tell whether a column is wanted; with `others` also of any texts, numbers or booleans."""
    column = field.name.strip()
    return column in wanted or bool(others and column and _plain(field.type))


def blocks(
    folder: Folder, name: str, columns: Sequence[str], size: int
) -> Iterator[tuple[int, pa.Table]]:
    """Yield some columns of a table as texts, `size` rows at a time, with the first row's number.

    Rows count from 1. The table is never in memory as a whole. Raises DataError where it cannot be
    read, lacks a column, or a value is null, empty, or neither a text nor a whole number.
    """
    first = 1
    for block in _streamed(folder, name, columns, size):
        names = [column.strip() for column in block.schema.names]
        refuse_twice([column for column in names if column in columns], names, name)
        if missing := [column for column in columns if column not in names]:
            raise DataError(
                f"{name} lacks a column",
                got=", ".join(filter(None, names)) or "no columns",
                expected=f"also {', '.join(missing)}",
                do="see docs/data.md, own data",
            )
        found = {column: block[names.index(column)] for column in columns}
        yield first, pa.table({key: texts(one, key, name, first) for key, one in found.items()})
        first += len(block)


def _streamed(folder: Folder, name: str, columns: Sequence[str], size: int) -> Iterator[pa.Table]:
    extension, path = posixpath.splitext(name)[1].lower(), folder.resolve(name)
    what = f"{without_passwords(path)} cannot be read as {extension[1:]}"
    again = _AGAIN_CSV if extension == ".csv" else _AGAIN
    with damaged.table(what, again), stores.opened(path) as file:
        if extension == ".parquet":
            table = pyarrow.parquet.ParquetFile(file)
            wanted = [one for one in table.schema_arrow.names if one.strip() in columns]
            for batch in table.iter_batches(size, columns=wanted or None):
                batch.validate(full=True)
                yield pa.Table.from_batches([batch])
        elif extension == ".csv":
            with stores.opened(path) as head:
                _check_form(head, name)
                head.seek(0)
                with _csv(head) as header:
                    names = header.schema.names
            with _csv(file, names) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])
        else:
            first = 1
            while lines := list(islice(file, size)):
                rows, found = _json_lines(b"".join(lines), name, first)
                if rows:
                    wanted = [one for one in found if one in columns]
                    yield pa.table({one: [_id(row[one]) for row in rows] for one in wanted})
                first += len(lines)


def _csv(file: Any, texts: Sequence[str] = ()) -> pyarrow.csv.CSVStreamingReader:
    return pyarrow.csv.open_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())),
    )


def _id(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_form(file: Any, name: str) -> None:
    """Raise DataError where semicolons or tabs part the columns, or a quotation mark is not closed.

    Arrow would take all rows up to the next mark for a text.
    """
    csv.field_size_limit(sys.maxsize)
    began, text = 1, TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
    lines = csv.reader(text, strict=True)
    try:
        for fields in lines:
            if began == 1 and len(fields) == 1 and (found := re.search("[;\t]", fields[0])):
                raise DataError(
                    f"the columns of {name} are not parted by commas",
                    got="tabs"
                    if found[0] == "\t"
                    else "semicolons, as Excel writes in many countries",
                    expected="commas",
                    do="save it with commas, or as Parquet",
                )
            began = lines.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}, line {began}: a field begins with a quotation mark that no mark at its end "
            "closes",
            got=error,
            expected='a mark inside of a field twice: "a 7"" lamp"',
            do="double the marks inside of such fields, and close each",
        ) from error
    finally:
        text.detach()


def with_decimals(table: pa.Table) -> pa.Table:
    """Return a table whose columns of floats of 32 bits have 64, written alike: 0.1."""
    for index, field in enumerate(table.schema):
        if pa.types.is_float32(field.type):
            wide = table.column(index).cast(pa.string()).cast(pa.float64())
            table = table.set_column(index, field.name, wide)
    return table


def texts(column: pa.ChunkedArray, name: str, table: str, first: int) -> pa.ChunkedArray:
    """Return a column as stripped texts. Raises DataError for null, no text or a fraction."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return texts(column.cast(kind.value_type), name, table, first)
    tests = ("integer", "string", "large_string", "string_view")
    plain = any(getattr(pa.types, f"is_{test}")(kind) for test in tests)
    found = column.cast(pa.string()) if plain else pa.nulls(len(column), pa.string())
    found = pc.utf8_trim_whitespace(found)
    good = pc.fill_null(pc.not_equal(found, ""), False)
    if pc.all(good, min_count=0).as_py():
        return found
    bad = pc.index(good, False).as_py()
    value = column[bad].as_py()
    raise DataError(
        f"{table}, row {first + bad} has no usable {name}",
        got="null" if value is None else json_text.shown(value),
        expected="a text or a whole number",
        do=f"fill {name} in, or leave the row out",
    )


def refuse_twice(read: Sequence[str], names: Sequence[str], table: str) -> None:
    """Raise DataError where a column that is read stands twice in a table."""
    if (again := twice(read)) is not None:
        raise DataError(
            f"{table} has {read.count(again)} columns {again!r}",
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


def _arrow(
    data: bytes, name: str, extension: str, is_read: Callable[[pa.Field], bool]
) -> tuple[pa.Table, list[str]]:
    """Return the columns of a table that are read, and the stripped names of all."""
    again = _AGAIN_CSV if extension == ".csv" else _AGAIN
    with damaged.told(f"{name} cannot be read as {extension[1:]}", again):
        if extension == ".parquet":
            file = pyarrow.parquet.ParquetFile(BytesIO(data))
            schema = file.schema_arrow
            table = file.read(columns=[field.name for field in schema if is_read(field)])
            table.validate(full=True)  # refuses texts that are not UTF-8
            return _only(table, is_read), [name.strip() for name in schema.names]
        _check_form(BytesIO(data), name)
        parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
        with pyarrow.csv.open_csv(BytesIO(data), parse_options=parse) as header:
            text = dict.fromkeys(header.schema.names, pa.string())
        convert = pyarrow.csv.ConvertOptions(column_types=text)
        table = pyarrow.csv.read_csv(BytesIO(data), parse_options=parse, convert_options=convert)
        return _only(table, is_read), [name.strip() for name in table.schema.names]


def _only(table: pa.Table, is_read: Callable[[pa.Field], bool]) -> pa.Table:
    # By number: of two columns of one name both have been read
    return table.select([index for index, field in enumerate(table.schema) if is_read(field)])


def _json_lines(data: bytes, name: str, first: int = 1) -> tuple[list[Row], list[str]]:
    """Return rows and the names of all their columns; a column that a row lacks is null there."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data.splitlines(), first):
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
        refuse_twice(names, names, f"{name}, line {number}")
        rows.append(dict(zip(names, row.values(), strict=True)))
    found = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column) for column in found} for row in rows], found
