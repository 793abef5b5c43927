"""Pictures inside Parquet files, as the datasets library writes them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raycd.data import files, images, manifest, parquet_images, parts
from raycd.errors import DataError

PICTURE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 10), (number, 2 * number, 3 * number)).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, numbers: range, *, ids: bool = True, group: int = 3) -> None:
    """Write a file with metadata and row groups as `Dataset.to_parquet` does."""
    columns = {
        "image": pa.array(
            [{"bytes": png(n), "path": f"{n}.png"} if n != 4 else None for n in numbers], PICTURE
        ),
        "colour": pa.array(["red" if n % 2 else "blue" for n in numbers]),
    }
    if ids:
        columns["image_id"] = pa.array([f"i{n}" for n in numbers])
    table = pa.table(columns).replace_schema_metadata(
        {"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shard(tmp_path / "data/train-00000-of-00002.parquet", range(7))
    shard(tmp_path / "data/train-00001-of-00002.parquet", range(7, 9))
    shard(tmp_path / "data/validation-00000-of-00001.parquet", range(10, 16))
    (tmp_path / "data/README.md").write_text("no Parquet")
    (tmp_path / "triplets.csv").write_text(
        "reference,target,caption,split\ni1,i2,is red,train\ni10,i12,is blue,val\n"
    )
    return tmp_path


@pytest.mark.parametrize("gallery", ["data", "data/*.parquet", "data/*"])
def test_a_folder_of_parquet_files_is_a_gallery(root: Path, gallery: str) -> None:
    data = manifest.read(str(root), "triplets.csv", gallery)
    assert data.gallery_ids("all", "train") == [f"i{n}" for n in range(9)]
    assert data.gallery_ids("all", "val") == [f"i{n}" for n in range(10, 16)]
    rows = {row["image_id"]: row for row in data.images.to_pylist()}
    assert rows["i8"]["path"] == f"{root}/data/train-00001-of-00002.parquet#image=1"
    assert rows["i8"]["attributes"] == [("colour", "blue")]
    for number in (0, 1, 2, 3, 5, 6, 7, 8, 10, 15):
        picture = images.load(rows[f"i{number}"]["path"])
        assert np.asarray(picture)[0, 0].tolist() == [number, 2 * number, 3 * number]


def test_one_file_and_the_pictures_own_names(tmp_path: Path) -> None:
    shard(tmp_path / "gallery.parquet", range(3), ids=False)
    (tmp_path / "t.csv").write_text("reference,target,caption\n0.png,2.png,is red\n")
    data = manifest.read(str(tmp_path), "t.csv", "gallery.parquet")
    assert data.gallery_ids("all", "val") == ["0.png", "1.png", "2.png"]


def test_a_picture_that_is_not_there_is_missing(root: Path) -> None:
    for path in (
        parts.in_row(f"{root}/data/train-00000-of-00002.parquet", "image", 4),  # null
        parts.in_row(f"{root}/data/train-00000-of-00002.parquet", "image", 7),  # too many
        parts.in_row(f"{root}/data/no.parquet", "image", 0),
    ):
        with pytest.raises(images.BrokenImage) as caught:
            images.load(path)
        assert caught.value.reason == "missing"


def test_a_file_that_is_no_parquet_is_an_error(root: Path) -> None:
    (root / "data/bad.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        images.load(parts.in_row(f"{root}/data/bad.parquet", "image", 0))
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read as parquet"):
        manifest.read(str(root), "triplets.csv", "data")


def test_texts_that_are_not_utf_8_are_an_error(root: Path) -> None:
    table = pq.read_table(root / "data/train-00000-of-00002.parquet")
    text = pa.array([b"\xff"] * len(table)).view(pa.string())
    pq.write_table(table.append_column("note", text), root / "data/bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet cannot be read as parquet"):
        manifest.read(str(root), "triplets.csv", "data")


def test_a_damaged_page_is_an_error_of_the_file_and_not_of_its_store(root: Path) -> None:
    data = bytearray((root / "data/train-00000-of-00002.parquet").read_bytes())
    data[4:12] = b"\xff" * 8
    (root / "data/bad.parquet").write_bytes(data)
    store, path = fsspec.url_to_fs(f"memory://{root.name}/bad.parquet")
    store.pipe_file(path, bytes(data))
    for file in (f"{root}/data/bad.parquet", f"memory://{root.name}/bad.parquet"):
        with pytest.raises(DataError, match=r"bad\.parquet cannot be read as parquet"):
            images.load(parts.in_row(file, "image", 0))


def test_files_without_pictures_or_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    pq.write_table(pa.table({"image_id": ["a"]}), tmp_path / "g/x.parquet")
    with pytest.raises(DataError, match=r"g/x.parquet lacks a column(.|\n)*also path"):
        manifest.read(str(tmp_path), "t.csv", "g")


def test_a_row_group_is_read_once_for_neighbours(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = parquet_images._read_group

    def counted(file: Any, column: str, group: int) -> Any:
        read.append(group)
        return real(file, column, group)

    monkeypatch.setattr(parquet_images, "_read_group", counted)
    monkeypatch.setattr(parquet_images, "_cache", parquet_images._Cache())
    path = f"{root}/data/train-00000-of-00002.parquet"
    for row in (0, 1, 2, 3, 5, 6, 0):
        images.load(parts.in_row(path, "image", row))
    assert read == [0, 1, 2]
    monkeypatch.setattr(parquet_images, "KEPT_BYTES", 1)  # keeps the last one alone
    for row in (0, 3, 0):
        images.load(parts.in_row(path, "image", row))
    assert read == [0, 1, 2, 1, 0]


def test_what_many_row_groups_take_is_counted_when_they_are_read_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "many.parquet"
    pq.write_table(
        pa.table({"image": [bytes([n]) * 100 for n in range(60)]}), file, row_group_size=2
    )
    cache = parquet_images._Cache()
    monkeypatch.setattr(parquet_images, "KEPT_BYTES", 1000)
    for n in (*range(60), *range(0, 60, 7), 59):
        assert cache.picture(parts.PictureRow(str(file), "image", n)) == bytes([n]) * 100
        assert cache._bytes == sum(group.nbytes for group in cache._groups.values()) <= 1000
    assert 1 < len(cache._groups) < 6


def test_of_more_files_than_are_open_those_are_opened_whose_pictures_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_images, "OPEN", 2)
    opened, real = list[str](), parquet_images._opened

    def counted(path: str) -> pq.ParquetFile:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(parquet_images, "_opened", counted)
    paths = [str(tmp_path / f"{n}.parquet") for n in range(4)]
    for n, path in enumerate(paths):
        table = pa.table({"image": [bytes([n, row]) for row in range(6)]})
        pq.write_table(table, path, row_group_size=3)
    cache = parquet_images._Cache()
    for row in (0, 1, 2, 3, 4, 5):
        for n, path in enumerate(paths):
            assert cache.picture(parts.PictureRow(path, "image", row)) == bytes([n, row])
    assert opened == [*paths, *paths]  # once for each row group


def test_a_row_group_of_many_rows_is_read_in_parts(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow cannot hold 2 GiB of pictures in one piece."""
    monkeypatch.setattr(parquet_images, "PART", 2)
    path = f"{root}/data/train-00000-of-00002.parquet"
    file = pq.ParquetFile(path)
    group = parquet_images._read_group(file, "image", 0)
    assert group.num_chunks > 1
    expected = file.read_row_group(0, columns=["image.bytes"]).column("image").to_pylist()
    assert [{"bytes": one} for one in group.to_pylist()] == expected


def test_the_state_of_a_picture_is_that_of_its_file(root: Path) -> None:
    path = root / "data/train-00000-of-00002.parquet"
    rows = [parts.in_row(str(path), "image", row) for row in (0, 5)]
    before = files.states(rows)
    assert before[0] == before[1] == files.states([str(path)])[0]
    shard(path, range(6))
    assert files.states(rows) != before


def test_a_store_is_read_like_a_folder(root: Path) -> None:
    """fsspec's memory stands for hf://: both are stores behind the same interface."""
    store = fsspec.filesystem("memory")
    for path in root.rglob("*.*"):
        store.pipe(f"/hub/{path.relative_to(root)}", path.read_bytes())
    try:
        data = manifest.read("memory://hub", "triplets.csv", "data/*.parquet")
        paths = dict(
            zip(data.images["image_id"].to_pylist(), data.images["path"].to_pylist(), strict=True)
        )
        assert paths["i12"] == "memory://hub/data/validation-00000-of-00001.parquet#image=2"
        assert np.asarray(images.load(paths["i12"]))[0, 0].tolist() == [12, 24, 36]
        assert files.states(list(paths.values()))[0] is not None
    finally:
        store.rm("/hub", recursive=True)


def test_the_hub_is_a_file_system_that_fsspec_knows() -> None:
    from huggingface_hub import HfFileSystem

    assert fsspec.get_filesystem_class("hf") is HfFileSystem
