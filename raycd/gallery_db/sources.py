"""Images with features in Parquet, as `jobs/gallery.py import` reads them.

    features/      what jobs/embed.py has written (`features.shards`): ids, paths, features
    a.parquet      a table, or a folder of tables: image_id and feature; maybe path, categories
                   (lists of texts) and attributes (a map of texts, or a struct). Its metadata may
                   name the encoder, as those of a bundle's gallery.parquet do

Shapes: D feature size.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raycd import stores
from raycd.data.folder import Folder, absolute, is_local
from raycd.errors import DataError, brief
from raycd.features import readable, shards
from raycd.features.rows import TableRows
from raycd.features.shards import ShardPlan
from raycd.features.stored import Stored
from raycd.gallery.static import ENCODER, SCHEMA
from raycd.redact import without_passwords
from raycd.run import open_uri

if TYPE_CHECKING:
    from raycd.data.catalogue import Labels

FEATURE = "feature"
COLUMNS = (*SCHEMA.names, FEATURE)
BLOCK = 5000  # rows that are read at a time


class Source(Protocol):
    """Images to import."""

    @property
    def encoder(self) -> str:
        """Fingerprint of the features' encoder; empty where it is not named."""

    @property
    def dim(self) -> int:
        """D."""

    @property
    def images(self) -> int:
        """Number of images with a feature."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """Number of images without one, by the reason."""

    def blocks(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield the images in their order: the file that they are in, and their COLUMNS."""
        ...


def source(uri: str) -> Source:
    """Open what is to be imported.

    Raises:
        DataError: There is nothing, or it has other columns.
    """
    uri = absolute(uri)
    plan = shards.read_plan(uri)
    found: Source = _Tables.open(uri) if plan is None else _Shards.open(uri, plan)
    if not found.images:
        raise DataError(
            f"there are no images with features in {without_passwords(uri)}",
            got=dict(found.left_out),
        )
    return found


@dataclass(frozen=True)
class _Counted:
    """What a source says before its images are read."""

    encoder: str
    dim: int
    images: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class Labelled(_Counted):
    """A source that says nothing of its images but their files, with labels from elsewhere."""

    of: Source
    labels: Mapping[str, Labels]

    @classmethod
    def over(cls, of: Source, labels: Mapping[str, Labels]) -> Labelled:
        """Return the same source with labels."""
        return cls(of.encoder, of.dim, of.images, of.left_out, of, labels)

    def blocks(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield the blocks of the source; what no label is known of stays null."""
        for where, block in self.of.blocks():
            known = [self.labels.get(key) for key in block["image_id"].to_pylist()]
            for name in ("categories", "attributes"):
                values = [one and (getattr(one, name) or None) for one in known]
                at, kind = block.schema.get_field_index(name), SCHEMA.field(name).type
                block = block.set_column(at, name, pa.array(values, kind))
            yield where, block


@dataclass(frozen=True)
class _Shards(_Counted):
    """A folder that jobs/embed.py has written."""

    stored: Stored
    rows: TableRows | None
    """The table that the features are of; None: they are of pictures in .tar files."""

    @classmethod
    def open(cls, uri: str, plan: ShardPlan) -> _Shards:
        stored = Stored.open(uri)
        rows = None if plan.shard_rows is None else TableRows(uri, plan.shard_rows)
        if rows is not None and any("path" not in one for one in rows.batches(0, 1)):
            raise DataError(f"{uri} has features of texts", expected="features of images")
        encoder, missing = str(plan.of.get("encoder", "")), stored.report().counts()
        return cls(encoder, stored.dim, int(stored.starts[-1]), missing, stored, rows)

    def blocks(self) -> Iterator[tuple[str, pa.Table]]:
        for number, block in enumerate(self.stored.blocks()):
            part, paths = self.stored.parts[number], pa.nulls(len(block), pa.string())
            if self.rows is not None and len(block):
                own: Mapping[str, Any] = next(
                    self.rows.batches(number, len(block)), {"key": [], "path": []}
                )
                if own["key"] != block["key"].to_pylist():
                    raise DataError(
                        f"{part} has other images than the rows that it belongs to",
                        expected=f"those of {shards.ROWS} beside it",
                        do="embed them again, into another folder",
                    )
                paths = pa.array(own["path"], pa.string())
            found = readable(block.append_column("path", paths))
            none = {name: pa.nulls(len(found), SCHEMA.field(name).type) for name in SCHEMA.names}
            known = {"image_id": found["key"], "path": found["path"], FEATURE: found[FEATURE]}
            yield part, pa.table(none | known)


@dataclass(frozen=True)
class _Tables(_Counted):
    """Parquet files of the same columns."""

    files: list[str]

    @classmethod
    def open(cls, uri: str) -> _Tables:
        files = _files(uri)
        encoders, dims, counts = map(list, zip(*map(_look, files), strict=True))
        for what, found in (("of one encoder", encoders), ("of one size", dims)):
            if len(set(found)) > 1:
                raise DataError(
                    f"the features of {without_passwords(uri)} are not {what}",
                    got=", ".join(str(one)[:12] or "none" for one in dict.fromkeys(found)),
                    do="import the files one by one, or take away what does not belong there",
                )
        return cls(encoders[0], dims[0], sum(counts), {}, files)

    def blocks(self) -> Iterator[tuple[str, pa.Table]]:
        for file in self.files:
            folder = Folder(posixpath.dirname(file))
            for block in _read(file):
                size, columns = len(block), dict[str, pa.Array]()
                for name in COLUMNS:
                    there = name in block.schema.names
                    columns[name] = block[name] if there else pa.nulls(size)
                columns["path"] = _resolved(folder, columns["path"].cast(pa.string()))
                yield without_passwords(file), pa.table(columns)


def _resolved(folder: Folder, paths: pa.Array) -> pa.Array:
    """Return paths; a relative one starts in the folder."""
    if pc.all(pc.match_substring_regex(paths, "^/|://"), min_count=0).as_py():
        return paths
    return pa.array([path and folder.resolve(path) for path in paths.to_pylist()], pa.string())


def _files(uri: str) -> list[str]:
    file_system, path = open_uri(uri)

    def listed() -> list[str]:
        if not file_system.isdir(path):
            return [uri] if file_system.exists(path) else []
        names = stores.names(uri, file_system, path)
        return [posixpath.join(uri, name) for name in names if name.endswith(".parquet")]

    found = stores.ask(uri, listed)
    if not found:
        raise DataError(
            f"there is nothing to import at {without_passwords(uri)}",
            expected="a folder of jobs/embed.py, a Parquet file, or a folder of Parquet files",
            do="check --from",
        )
    return found


def _look(file: str) -> tuple[str, int, int]:
    """Return encoder, feature size and number of rows. Raises DataError for wrong columns."""
    with _opened(file) as opened:
        _check_columns(file, opened.schema_arrow)
        kind = opened.schema_arrow.field(FEATURE).type
        dim = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
        if not dim:
            batches = (batch[FEATURE] for batch in opened.iter_batches(1000, columns=[FEATURE]))
            sizes = (pc.list_value_length(own).to_pylist() for own in batches)
            dim = next((size for own in sizes for size in own if size), 0)
        encoder = (opened.schema_arrow.metadata or {}).get(ENCODER, b"").decode(errors="replace")
        return encoder, dim, opened.metadata.num_rows


def _check_columns(file: str, schema: pa.Schema) -> None:
    unknown = [name for name in schema.names if name not in COLUMNS]
    missing = [name for name in ("image_id", FEATURE) if name not in schema.names]
    wrong = [
        f"{name} of type {schema.field(name).type}"
        for name in COLUMNS
        if schema.names.count(name) > 1
        or (name in schema.names and not _fits(name, schema.field(name).type))
    ]
    if unknown or missing or wrong:
        got = [f"{name}, which is unknown" for name in unknown] + wrong
        got += [f"no {name}" for name in missing]
        raise DataError(
            f"the columns of {without_passwords(file)} are not those of an import",
            got="; ".join(got[:5]),
            expected="image_id (texts), feature (lists of numbers), and maybe path (texts), "
            "categories (lists of texts), attributes (a map or a struct of texts)",
            do="write a table of these columns; other values become attributes",
        )


def _fits(name: str, kind: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return name not in ("image_id", FEATURE)
    if name in ("image_id", "path"):
        return _is_text(kind) or (name == "image_id" and bool(pa.types.is_integer(kind)))
    if name == "attributes":
        return bool(pa.types.is_map(kind) or pa.types.is_struct(kind))
    tests = ("list", "large_list", "fixed_size_list")
    if not any(getattr(pa.types, f"is_{test}")(kind) for test in tests):
        return False
    inner = kind.value_type
    return bool(pa.types.is_floating(inner)) if name == FEATURE else _is_text(inner)


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(getattr(pa.types, f"is_{test}")(kind) for test in ("string", "large_string"))


def _read(file: str) -> Iterator[pa.RecordBatch]:
    """Yield a file's rows. Raises DataError where it breaks off."""
    with _opened(file) as table:
        yield from table.iter_batches(BLOCK)


@contextmanager
def _opened(file: str) -> Iterator[pq.ParquetFile]:
    """Open a file, and raise DataError where it cannot be read. A store is asked with patience."""
    try:
        if is_local(file):
            with pq.ParquetFile(file, memory_map=True) as table:
                yield table
        else:
            with stores.opened(file) as opened, pq.ParquetFile(opened) as table:
                yield table
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{without_passwords(file)} cannot be read as Parquet",
            got=brief(error),
            do="write the file again",
        ) from error
