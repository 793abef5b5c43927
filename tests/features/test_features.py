"""Features in memory, in shards and in the files of an earlier raycd."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from raycd import features, stores
from raycd.errors import DataError
from raycd.features import READABLE, Features, shards
from raycd.features.rows import GROUP, TableRows, TarRows, write_table
from raycd.features.shards import ShardPlan
from raycd.features.stored import Stored
from tests.one_shard import write_whole

VECTORS = np.array([[1, 2, 3], [0, 0, 0], [4.5, 5, 6], [7, 8, -9], [2, 2, 2]], np.float32)
KEYS, STATUS = (
    ["b", "broken", "a", "Is red and long", "c"],
    [READABLE, "truncated", READABLE, READABLE, READABLE],
)
TABLE = features.to_table(KEYS, STATUS, VECTORS)


@pytest.fixture(params=["shards", "file", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return features in shards of two rows, written in any order, or in one file."""
    if request.param == "file":
        pq.write_table(TABLE, tmp_path / "images.parquet")
        return str(tmp_path / "images")
    root = {"shards": str(tmp_path), "memory": f"memory://{tmp_path.name}"}
    if request.param == "s3":
        request.getfixturevalue("s3")
        root["s3"] = f"s3://raycd/{tmp_path.name}"
    folder = f"{root[request.param]}/images"
    shards.begin(folder, ShardPlan(3, 5, 2))
    for number in (2, 0, 1):
        shards.write(folder, number, TABLE.slice(2 * number, 2))
    return folder


def test_features_come_back_in_the_order_of_the_table_without_the_broken(folder: str) -> None:
    found = Stored.open(folder).features()
    assert found.keys.to_pylist() == ["b", "a", "Is red and long", "c"]
    assert found.values.tolist() == [[1, 2, 3], [4.5, 5, 6], [7, 8, -9], [2, 2, 2]]
    assert Stored.open(folder).keys().equals(found.keys)


def test_shards_with_rows_that_were_not_read_are_forgotten_and_the_others_stay(folder: str) -> None:
    stored = Stored.open(folder)
    stored.forget_unreadable()
    if stored.parts[0].endswith("images.parquet"):  # of an earlier raycd: all or nothing
        assert not Path(stored.parts[0]).exists()
    else:
        assert list(shards.parts(folder)) == [1, 2]


def test_a_file_is_opened_by_its_own_name(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "images.parquet")
    assert Stored.open(tmp_path / "images.parquet").keys().to_pylist()[:2] == ["b", "a"]


def test_a_new_plan_leaves_no_shard_of_another(folder: str) -> None:
    shards.begin(folder, ShardPlan(4, 5, 1))
    assert shards.parts(folder) == {}
    with pytest.raises(DataError, match="4 of 4 shards"):
        Stored.open(folder)


def test_whole_shards_of_the_same_are_copied_and_what_is_there_stays(folder: str) -> None:
    copy, stored = f"{folder}-copy", Stored.open(folder)
    stored.copy(copy, {"encoder": "another"}, 5)
    stored.copy(copy, {}, 6)
    assert shards.read_plan(copy) is None
    stored.copy(copy, {}, 5)
    assert shards.read_plan(copy) == shards.read_plan(folder)
    if shards.read_plan(folder) is None:  # the one file of an earlier raycd is not taken over
        return
    assert list(shards.parts(copy)) == [1, 2]  # the first one has an image that was not read
    shards.write(copy, 0, TABLE.slice(0, 2))
    assert Stored.open(copy).features().values.equal(stored.features().values)
    shards.write(copy, 1, TABLE.slice(0, 2))
    shards.remove(shards.parts(copy)[2])
    stored.copy(copy, {}, 5)
    assert Stored.open(copy).keys().to_pylist() == ["b", "b", "c"]


def test_another_order_may_be_asked_for_and_lacks_what_is_not_there(folder: str) -> None:
    found = Stored.open(folder).features(["c", "absent", "broken", "a"])
    assert found.keys.to_pylist() == ["c", "a"]
    assert found.values.tolist() == [[2, 2, 2], [4.5, 5, 6]]


def test_rows_are_those_of_the_readable(folder: str) -> None:
    stored = Stored.open(folder)
    assert (stored.dim, stored.starts[-1]) == (3, 4)
    assert stored.rows(np.array([1, 3])).tolist() == [[4.5, 5, 6], [2, 2, 2]]
    assert stored.rows(np.array([], np.int32)).shape == (0, 3)


def test_rows_of_any_order_are_copied_into_the_room_that_is_given(folder: str) -> None:
    made = []

    def room(shape: tuple[int, int], kind: type[np.float32]) -> NDArray[np.float32]:
        made.append(np.full(shape, np.nan, kind))
        return made[0]

    found = Stored.open(folder).rows(np.array([3, 0, 2, 0]), room=room)
    assert found.tolist() == [[2, 2, 2], [1, 2, 3], [7, 8, -9], [1, 2, 3]]
    assert found is made[0]


def test_shards_without_a_wanted_row_are_not_read(tmp_path: Path) -> None:
    shards.begin(str(tmp_path), ShardPlan(2, 4, 2))
    for number in range(2):
        shards.write(str(tmp_path), number, TABLE.slice(2 * number, 2))
    stored = Stored.open(tmp_path)
    keys, _, _ = stored.keys(), stored.starts, stored.dim
    (tmp_path / shards.name(0)).unlink()
    assert stored.rows(np.array([1, 2])).tolist() == [[4.5, 5, 6], [7, 8, -9]]
    assert keys.to_pylist() == ["b", "a", "Is red and long"]


def test_what_is_broken_is_counted_and_listed(folder: str) -> None:
    stored = Stored.open(folder)
    report = stored.report()
    assert (report.counts(), report.reasons) == ({"truncated": 1}, {"broken": "truncated"})
    assert json.loads(b"".join(stored.listing(report))) == report.to_dict()


def test_a_report_names_some_and_the_list_names_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, status = [f'"{n}"' for n in range(7)], ["missing"] * 4 + ["empty"] * 2 + [READABLE]
    write_whole(str(tmp_path), features.to_table(keys, status, np.zeros((7, 2), np.float32)))
    monkeypatch.setattr("raycd.features.stored.LISTED", 3)
    stored = Stored.open(tmp_path)
    report = stored.report()
    assert len(report) == 6
    assert report.counts() == {"missing": 4, "empty": 2}
    assert list(report.reasons) == keys[:3]
    listed = json.loads(b"".join(stored.listing(report)))
    assert listed["missing"] == 6
    assert listed["images"] == dict(zip(keys[:6], status, strict=False))


def test_the_vectors_type_carries_their_size(folder: str) -> None:
    [block, *_] = Stored.open(folder).blocks()
    assert block.schema.names == ["key", "status", "feature"]
    assert block.schema.field("feature").type == pa.list_(pa.float32(), 3)


def test_no_rows_are_no_features(tmp_path: Path) -> None:
    write_whole(str(tmp_path), TABLE.slice(0, 0))
    stored = Stored.open(tmp_path)
    assert stored.features().values.shape == (0, 3)
    assert len(stored.report()) == 0
    assert json.loads(b"".join(stored.listing(stored.report())))["images"] == {}


def test_nothing_readable_is_no_features(tmp_path: Path) -> None:
    write_whole(str(tmp_path), TABLE.slice(1, 1))
    assert Stored.open(tmp_path).features().values.shape == (0, 3)


def damage(file: Path, where: slice) -> None:
    data = bytearray(file.read_bytes())
    data[where] = b"\xff" * len(data[where])
    file.write_bytes(data)


def test_a_damaged_table_of_the_rows_is_named(tmp_path: Path) -> None:
    write_table(str(tmp_path), [pa.table({"key": KEYS})], pa.schema({"key": pa.string()}))
    damage(tmp_path / shards.ROWS, slice(4, 12))
    with pytest.raises(DataError, match=r"rows\.parquet cannot be read\n(?s:.*)embed again"):
        list(TableRows(str(tmp_path), 5).batches(0, 5))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / shards.name(1)).unlink(), r"1 of 2 shards.*are not there"),
        (
            lambda folder: (folder / shards.name(1)).write_bytes(b"PAR1"),
            r"part-00001.*cannot be read",
        ),
        (
            lambda folder: damage(folder / shards.name(1), slice(-60, -8)),  # its footer
            r"part-00001.*cannot be read",
        ),
        (
            lambda folder: damage(folder / shards.name(1), slice(4, 12)),  # a page's header
            r"part-00001.*cannot be read",
        ),
        (lambda folder: (folder / shards.PLAN).write_text("{"), r"shards\.json cannot be read"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "there are no features"),
    ],
)
def test_damaged_shards_are_named(tmp_path: Path, break_it: object, message: str) -> None:
    shards.begin(str(tmp_path), ShardPlan(2, 5, 3))
    for number in range(2):
        shards.write(str(tmp_path), number, TABLE.slice(3 * number, 3))
    assert callable(break_it)
    break_it(tmp_path)
    with pytest.raises(DataError, match=message):
        Stored.open(tmp_path).features()


@pytest.mark.parametrize("what", ["all", "header"])
def test_a_damaged_shard_on_a_store_is_named_and_not_the_store(tmp_path: Path, what: str) -> None:
    folder = f"memory://{tmp_path.name}"
    write_whole(folder, TABLE)
    file = tmp_path / "shard"
    file.write_bytes(stores.read(f"{folder}/{shards.name(0)}"))
    damage(file, slice(4, 12) if what == "header" else slice(None))
    shards.write_file(f"{folder}/{shards.name(0)}", file)
    with pytest.raises(DataError, match=r"part-00000.*cannot be read\n(?s:.*)it writes it anew"):
        Stored.open(folder).features()


def test_a_shard_that_fails_half_way_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            shards.write(str(tmp_path), 3, TABLE)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".part-00003.parquet.x.unfinished").write_bytes(b"of a killed worker")
    assert shards.parts(str(tmp_path)) == {}
    shards.write(str(tmp_path), 3, TABLE)
    assert list(shards.parts(str(tmp_path))) == [3]


@pytest.mark.parametrize(
    ("rows", "least", "parts", "expected"),
    [
        (0, 64, 8, (1, 64)),
        (100, 64, 8, (2, 64)),
        (46_609, 64, 8, (46, 1024)),
        (3000, 64, 8, (8, 375)),
        (100_000_000, 64, 8, (10_000, 10_000)),
    ],
)
def test_shards_are_neither_many_nor_large(
    rows: int, least: int, parts: int, expected: tuple[int, int]
) -> None:
    plan = ShardPlan.of_rows(rows, least, parts, {})
    assert (plan.shards, plan.shard_rows) == expected


@pytest.mark.parametrize("size", [1, 1000, GROUP, GROUP + 1, 3 * GROUP])
def test_every_row_of_a_table_is_in_one_shard(tmp_path: Path, size: int) -> None:
    table = pa.table({"key": [str(n) for n in range(2 * GROUP + 9)]})
    blocks = [table.slice(start, 5000) for start in range(0, len(table), 5000)]
    assert write_table(str(tmp_path), blocks, table.schema) == len(table)
    rows, count = TableRows(str(tmp_path), size), -(-len(table) // size)
    asked = [0, count // 2, count - 1] if count > 100 else range(count)
    for shard in asked:
        batches = list(rows.batches(shard, 700))
        assert all(len(batch["key"]) <= 700 for batch in batches)
        expected = table["key"].slice(shard * size, size).to_pylist()
        assert [key for batch in batches for key in batch["key"]] == expected


def test_keys_are_found_many_at_a_time() -> None:
    found = Features.of(["b", "a"], torch.tensor([[1.0], [2.0]]))
    assert found.find(pa.array(["a", None, "x", "b"])).tolist() == [1, -1, -1, 0]
    assert found.among(["x", "b", "a", "b"]) == {"b": 0, "a": 1}
    assert found.take(["a", "a", "b"]).tolist() == [[2], [2], [1]]
    with pytest.raises(KeyError, match="x"):
        found.take(["a", "x"])
    assert Features.of_table(TABLE).keys.to_pylist() == ["b", "a", "Is red and long", "c"]


def test_the_pictures_of_a_tar_file_come_by_sample_and_a_cut_off_one_is_refused(
    tmp_path: Path,
) -> None:
    file = tmp_path / "shard.tar"
    with tarfile.open(file, "w") as archive:
        for name in ("a/1.jpg", "a/1.seg.png", "a/1.txt", "a/2.txt", "a/2.PNG", "3.json"):
            member = tarfile.TarInfo(name)
            member.size = 700
            archive.addfile(member, io.BytesIO(name[-1:].encode() * 700))
    [batch] = TarRows([str(file)]).batches(0, 9)
    assert list(zip(batch["key"], batch["data"], strict=True)) == [
        ("a/1", b"g" * 700),
        ("a/2", b"G" * 700),
    ]
    whole = file.read_bytes()
    for size in (0, 600, 1700, 2100, 6000):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cannot be read as \.tar"):
            list(TarRows([str(file)]).batches(0, 9))


def test_a_worker_that_does_not_reach_the_folder_says_on_which_machine(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)rows.parquet.*no such file on .*all machines"):
        list(TableRows(str(tmp_path), 4).batches(0, 2))


def test_archives_behind_one_another_are_not_lost(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            member = tarfile.TarInfo(f"{name}.jpg")
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    both = tmp_path / "both.tar"
    both.write_bytes(b"".join((tmp_path / f"{name}.tar").read_bytes() for name in ("one", "two")))
    with pytest.raises(DataError, match="several archives"):
        list(TarRows([str(both)]).batches(0, 8))
