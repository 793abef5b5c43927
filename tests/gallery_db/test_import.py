"""jobs/gallery.py import on both databases: Parquet becomes the gallery, checked and once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jobs import gallery
from raycd import bundle
from raycd.data.catalogue import Labels
from raycd.features import shards, to_table
from raycd.features.rows import write_table
from raycd.features.shards import ShardPlan
from raycd.gallery.records import USABLE_ID, Delete, Put
from raycd.gallery.static import SCHEMA
from raycd.gallery_db import GalleryDatabase, batches
from tests.gallery_db.imported import OTHER, OURS, contents, images
from tests.gallery_db.values import DIM, feature, put


def test_a_table_is_the_gallery_with_versions_in_its_order(
    gallery_db: GalleryDatabase, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images([3, 1, 2])) == 0
    said = capsys.readouterr()
    assert "added:     3 images\nreplaced:  0\nunchanged: 0 " in said.out
    assert "gallery:   3 images at version 3" in said.out
    assert "import: 3/3 images (100%)" in said.err
    rows = gallery_db.changes(0, OURS).rows
    assert [(row.image_id, row.version) for row in rows] == [
        ("image-3", 1),
        ("image-1", 2),
        ("image-2", 3),
    ]
    assert contents(gallery_db)["image-1"] == (
        "image-1",
        ["dress", "größe"],
        "/photos/1.jpg",
        [("colour", "blue"), ("price", "1")],
        feature(1).tolist(),
    )


def test_what_is_there_already_is_left_alone_and_what_differs_is_replaced(
    gallery_db: GalleryDatabase, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images([1, 2, 3])) == 0
    assert run(images([1, 2, 3])) == 0
    assert "added:     0 images\nreplaced:  0\nunchanged: 3 " in capsys.readouterr().out
    assert gallery_db.version() == 3
    gallery_db.write([Delete("image-3")], OURS)
    table = pa.concat_tables([images([1]), images([2], colour="red"), images([3, 4])])
    assert run(table) == 0
    assert "added:     2 images\nreplaced:  1\nunchanged: 1 " in capsys.readouterr().out
    rows = gallery_db.changes(4, OURS).rows
    assert [row.image_id for row in rows] == ["image-2", "image-3", "image-4"]
    assert rows[0].attributes["colour"] == "red"
    assert (gallery_db.version(), gallery_db.count()) == (7, 4)


def test_another_encoders_features_come_to_images_that_stay_as_they_are(
    gallery_db: GalleryDatabase, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images([1, 2])) == 0
    table = pa.concat_tables([images([1], encoder=OTHER), images([2], colour="red", encoder=OTHER)])
    assert run(table) == 2
    assert "an encoder that the gallery does not know" in capsys.readouterr().err
    assert run(table, "--encoder", OTHER[:12]) == 0
    assert gallery_db.encoders() == {OURS: 1, OTHER: 2}
    assert list(contents(gallery_db)) == ["image-1"]
    assert gallery_db.version() == 4


def test_new_labels_of_the_same_picture_leave_the_features_of_other_encoders(
    gallery_db: GalleryDatabase, run: Callable[..., int]
) -> None:
    assert run(images([1, 2])) == 0
    assert run(images([1, 2], encoder=OTHER), "--encoder", OTHER[:12]) == 0
    before = contents(gallery_db, OTHER)
    assert run(images([1, 2], colour="red")) == 0
    assert gallery_db.encoders() == {OURS: 2, OTHER: 2}
    after = contents(gallery_db, OTHER)
    assert [own[-1] for own in after.values()] == [own[-1] for own in before.values()]
    assert dict(after["image-1"][3])["colour"] == "red"
    # Another feature of the same encoder is that of another picture
    moved = images([1], colour="red")
    moved = moved.set_column(4, "feature", images([7])["feature"])
    assert run(moved) == 0
    assert gallery_db.encoders() == {OURS: 2, OTHER: 1}


@pytest.mark.parametrize("seed", range(2))
def test_any_imports_between_writes_give_what_a_dictionary_gives(
    gallery_db: GalleryDatabase, run: Callable[..., int], seed: int
) -> None:
    rng, there = random.Random(seed), dict[str, Any]()
    for _ in range(12):
        if rng.random() < 0.4:
            name = f"image-{rng.randrange(9)}"
            change = put(name, rng.randrange(9)) if rng.random() < 0.5 else Delete(name)
            gallery_db.write([change], OURS)
            there.pop(name, None)
            if isinstance(change, Put):
                attributes = list(change.attributes.items())
                own = name, list(change.categories), change.path, attributes
                there[name] = (*own, change.feature.tolist())
            continue
        table = images(rng.sample(range(9), 4), colour=rng.choice(["red", "blue"]))
        assert run(table) == 0
        for row in table.to_pylist():
            there[row["image_id"]] = tuple(row.values())
    assert contents(gallery_db) == there
    versions = [row.version for row in gallery_db.changes(0, OURS).rows]
    assert versions == sorted(set(versions))
    assert versions[-1] == gallery_db.version()


def test_an_import_that_was_stopped_goes_on_where_it_was(
    gallery_db: GalleryDatabase,
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(batches, "SIZE", 4)
    monkeypatch.setattr("raycd.gallery_db.sources.BLOCK", 4)
    original = GalleryDatabase.import_rows

    def stopped(self: GalleryDatabase, *given: Any) -> Any:
        if self.version() == 8:
            raise KeyboardInterrupt
        return original(self, *given)

    monkeypatch.setattr(GalleryDatabase, "import_rows", stopped)
    table = images(range(15))
    assert run(table) == 130
    assert "run the same command again to continue" in capsys.readouterr().err
    assert gallery_db.version() == 8
    monkeypatch.setattr(GalleryDatabase, "import_rows", original)
    assert run(table) == 0
    assert "added:     7 images\nreplaced:  0\nunchanged: 8 " in capsys.readouterr().out
    assert (gallery_db.version(), gallery_db.count()) == (15, 15)


def test_a_large_block_is_written_in_parts(
    gallery_db: GalleryDatabase, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of features of a .tar file is one block."""
    monkeypatch.setattr(batches, "SIZE", 4)
    sizes, original = list[int](), GalleryDatabase.import_rows

    def noted(self: GalleryDatabase, rows: Any, encoder: str) -> Any:
        sizes.append(len(rows.image_ids))
        return original(self, rows, encoder)

    monkeypatch.setattr(GalleryDatabase, "import_rows", noted)
    assert run(images(range(10))) == 0
    assert sizes == [4, 4, 2]
    found = contents(gallery_db)
    assert [found[f"image-{n}"][3][1] for n in range(10)] == [("price", str(n)) for n in range(10)]


def test_what_the_embedding_job_has_written_comes_with_its_paths_and_without_broken_pictures(
    gallery_db: GalleryDatabase,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "features"
    plan = ShardPlan(2, 5, 3, {"encoder": OURS})
    shards.begin(str(folder), plan)
    keys, paths = [f"image-{n}" for n in range(5)], [f"s3://shop/{n}.jpg" for n in range(5)]
    rows = pa.table({"key": keys, "path": paths})
    write_table(str(folder), [rows], rows.schema)
    status = ["ok", "missing", "ok", "ok", "truncated"]
    features_ND = np.array([feature(n) for n in range(5)])
    for number, own in enumerate((slice(0, 3), slice(3, 5))):
        shards.write(str(folder), number, to_table(keys[own], status[own], features_ND[own]))
    assert run(folder, "--category", "all") == 0
    said = capsys.readouterr().out
    assert "left out:  without a feature: 1 missing, 1 truncated\n" in said
    found = contents(gallery_db)
    assert list(found) == ["image-0", "image-2", "image-3"]
    assert found["image-3"] == ("image-3", ["all"], "s3://shop/3.jpg", [], feature(3).tolist())


def test_columns_of_other_types_that_mean_the_same_are_read(
    gallery_db: GalleryDatabase, run: Callable[..., int], tmp_path: Path
) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    doubles = [feature(1).tolist(), feature(2).tolist()]
    first = {"image_id": [1, 2], "feature": doubles, "path": ["a/1.jpg", None]}
    labels = {"attributes": [{"colour": "blue", "price": None}, {"colour": None, "price": 3}]}
    pq.write_table(pa.table(first | labels), folder / "1.parquet")
    pq.write_table(
        pa.table({"feature": doubles[:1], "image_id": pa.array(["x"]).dictionary_encode()}),
        folder / "2.parquet",
    )
    assert run(folder, "--encoder", OURS) == 0
    found = contents(gallery_db)
    path = str(folder / "a/1.jpg")
    assert found["1"] == ("1", [], path, [("colour", "blue")], feature(1).tolist())
    assert found["2"][2:4] == (None, [("price", "3")])
    assert found["x"] == ("x", [], None, [], feature(1).tolist())


def changed(column: str, values: Any) -> pa.Table:
    """Return three images with another column."""
    table = images([1, 2, 3])
    if column not in table.column_names:
        return table.append_column(column, pa.array(values))
    return table.set_column(table.column_names.index(column), column, pa.array(values))


ONES = [1.0] * DIM


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (changed("colour", ["a", "b", "c"]), "colour, which is unknown"),
        (images([1]).drop_columns(["feature"]), "no feature"),
        (changed("image_id", ["a", "b", "a"]), "1 image ids are there more than once\n  got:"),
        (
            changed("image_id", ["a", None, " c"]),
            "1 image ids that cannot be one\n  got:      null",
        ),
        (changed("image_id", ["a", "..", "c"]), "'..'"),
        (changed("image_id", ["a", "\u200b\u3000\u200b", "c"]), USABLE_ID),
        (changed("image_id", ["a", "\u3164\u2800\ufe0f", "c"]), USABLE_ID),
        (changed("image_id", [1.5, 2.5, 3.5]), "image_id of type double"),
        (changed("feature", [ONES, ONES, [*ONES[1:], np.nan]]), "not finite in float32"),
        (changed("feature", [ONES, ONES, [*ONES[1:], 1e39]]), "whose length is not: 'image-3'"),
        (changed("feature", [ONES, [0.0] * DIM, ONES]), "only zeros: 'image-2'"),
        (changed("feature", [ONES, ONES[1:], ONES]), "none, or one of another size: 'image-2'"),
        (changed("feature", [ONES, None, ONES]), "none, or one of another size: 'image-2'"),
        (changed("feature", [None, ONES, ONES]), "none, or one of another size: 'image-1'"),
        (changed("feature", ["a", "b", "c"]), "feature of type string"),
        (changed("categories", [["dress"], [" "], []]), "categories that cannot be one"),
        (changed("categories", ["dress", "dress", "dress"]), "categories of type string"),
        (changed("attributes", [{"a": "x" * 513}, {"a": "b"}, None]), "attributes that cannot be"),
        (images([]), "there are no images with features"),
        (images([1]).replace_schema_metadata({}), "the files do not name it"),
    ],
)
def test_wrong_input_is_one_message_before_anything_is_written(
    gallery_db: GalleryDatabase,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    table: pa.Table,
    message: str,
) -> None:
    monkeypatch.setattr(batches, "SIZE", 1)  # the first images would be written before the last
    assert run(table) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("error:") == 1
    assert gallery_db.version() == 0


def test_features_of_another_size_than_the_encoders_are_refused(
    gallery_db: GalleryDatabase, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    gallery_db.write([Put("a", np.ones(DIM + 1, np.float32))], OURS)
    assert run(images([1])) == 2
    assert "a feature is of another size than this encoder's others" in capsys.readouterr().err
    assert gallery_db.version() == 1


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_gallery_is_made_only_where_that_is_asked_for(
    url: str, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images([1])) == 2
    assert "there is no gallery at" in capsys.readouterr().err
    assert not Path(url).exists()
    assert run(images([1]), "--new") == 0
    assert run(images([1]), "--new") == 0
    with GalleryDatabase.open(url, migrate=False) as made:
        assert made.count() == 1


@pytest.mark.parametrize("what", ["nothing", "no Parquet", "cut off"])
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_cannot_be_read_is_named(
    gallery_db: GalleryDatabase,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    what: str,
) -> None:
    path = tmp_path / "given.parquet"
    if what != "nothing":
        pq.write_table(images(range(50)), path)
        path.write_bytes(path.read_bytes()[:-20] if what == "cut off" else b"not Parquet at all")
    assert run(path) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_password_of_a_store_is_in_no_message(
    gallery_db: GalleryDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "memory://ann:secret@shop/none.parquet"
    assert gallery.main(["import", "--gallery", gallery_db.url, "--from", source]) == 2
    said = capsys.readouterr().err
    assert "there is nothing to import at memory://ann:***@shop/none.parquet" in said
    assert "secret" not in said


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_store_that_is_busy_in_the_middle_of_a_table_is_asked_again(
    gallery_db: GalleryDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fsspec.open("memory://busy/table.parquet", "wb") as file:
        pq.write_table(images(range(50)), file)
    busy, original = iter([False, True]), MemoryFileSystem.open

    def opened(self: MemoryFileSystem, path: str, *given: Any, **options: Any) -> Any:
        if path.endswith(".parquet") and next(busy, False):
            raise TimeoutError("busy")
        return original(self, path, *given, **options)

    monkeypatch.setattr(MemoryFileSystem, "open", opened)
    monkeypatch.setattr("raycd.stores.WAITS", (0.01,))
    command = ["import", "--gallery", gallery_db.url, "--encoder", OURS]
    assert gallery.main([*command, "--from", "memory://busy/table.parquet"]) == 0
    assert gallery_db.count() == 50


def test_changes_in_parts_are_all_changes(gallery_db: GalleryDatabase) -> None:
    gallery_db.write([put(f"image-{n}") for n in range(7)], OURS)
    gallery_db.write([put("image-1", 5), Delete("image-6")], OURS)
    whole, seen, rows = gallery_db.changes(0, OURS), 0, list[Any]()
    while (part := gallery_db.changes(seen, OURS, limit=3)).more:
        assert part.version == part.rows[-1].version
        rows += part.rows
        seen = part.version
    rows += part.rows
    assert part.version == whole.version == 9
    assert [(row.image_id, row.version) for row in rows] == [
        (row.image_id, row.version) for row in whole.rows
    ]


@pytest.mark.slow
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_an_import_that_is_killed_loses_and_repeats_nothing(
    url: str, run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    count, rng = 30_000, np.random.default_rng(0)
    table = bundle.gallery_table(
        [f"image-{n}" for n in range(count)],
        [[]] * count,
        [None] * count,
        rng.normal(size=(count, 640)).astype(np.float32),
        OURS,
    )
    pq.write_table(table, tmp_path / "large.parquet")
    command = [sys.executable, "jobs/gallery.py", "import", "--gallery", url, "--new"]
    process = subprocess.Popen([*command, "--from", str(tmp_path / "large.parquet")])
    version, end = 0, time.monotonic() + 120
    while version == 0:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
        if Path(url).exists() and Path(url).stat().st_size > 1_000_000:
            with GalleryDatabase.open(url, migrate=False) as opened:
                version = opened.version()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(tmp_path / "large.parquet") == 0
    with GalleryDatabase.open(url) as opened:
        assert (opened.version(), opened.count()) == (count, count)
        found = opened.load(OURS)
        assert found.table.schema == SCHEMA
        np.testing.assert_array_equal(found.features_GD, bundle.gallery_features(table))
    assert "added:     30,000" not in capsys.readouterr().out


def test_descriptions_are_no_attributes_of_a_gallery() -> None:
    labels = {"a": Labels(["dress"], {"colour": " red ", "description": "x" * 513, "size": ""})}
    assert batches.fitting(labels) == ({"a": Labels(["dress"], {"colour": "red"})}, 1)
