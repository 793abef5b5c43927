"""Bundles with forged or damaged files, with matching hashes, are refused in words."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from raycd import bundle
from raycd.bundle import FILES, GALLERY, MANIFEST
from raycd.durable import sha256
from raycd.errors import WeightsError
from raycd.index.files import NUMBERS, STRUCTURE

DEEP = "[" * 200_000


@pytest.fixture
def copy(tiny_bundle: Any, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bundle.folder, tmp_path / "bundle")
    return tmp_path / "bundle"


def sign(folder: Path) -> None:
    """Make all hashes right."""
    content = json.loads((folder / MANIFEST).read_text())
    content["files"] = {name: sha256(folder / name) for name in FILES}
    manifest = bundle.Manifest.model_validate(content)
    content["digest"] = manifest.own_digest()
    (folder / MANIFEST).write_text(json.dumps(content))


def change_table(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(folder / GALLERY)), folder / GALLERY)


def with_ids(table: pa.Table, ids: list[str | None]) -> pa.Table:
    return table.set_column(0, "image_id", pa.array(ids, pa.string()))


def cut(name: str, share: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        os.truncate(folder / name, int((folder / name).stat().st_size * share))

    return spoil


def junk(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def null_id(folder: Path) -> None:
    change_table(folder, lambda table: with_ids(table, [None, *table["image_id"].to_pylist()[1:]]))


def repeated_id(folder: Path) -> None:
    change_table(
        folder, lambda table: with_ids(table, ["image-1", *table["image_id"].to_pylist()[1:]])
    )


def null_category(folder: Path) -> None:
    nulls = pa.array([[None]] * 12, pa.list_(pa.string()))
    change_table(folder, lambda table: table.set_column(1, "categories", nulls))


def no_ids(folder: Path) -> None:
    change_table(folder, lambda table: table.drop_columns("image_id"))


def numbers_for_ids(folder: Path) -> None:
    change_table(folder, lambda table: table.set_column(0, "image_id", pa.array([[1]] * 12)))


def other_numbers(folder: Path) -> None:
    arrays = load_file(folder / NUMBERS)
    save_file({**arrays, "lengths": arrays["lengths"][:3]}, folder / NUMBERS)


def numbers_of_another_size(folder: Path) -> None:
    arrays = load_file(folder / NUMBERS)
    facts = json.dumps({"kind": "flat", "effort": 0, "recall": 1.0})
    save_file(
        {**arrays, "lengths": arrays["lengths"][:3]}, folder / NUMBERS, metadata={"index": facts}
    )


def another_kind(folder: Path) -> None:
    facts = json.dumps({"kind": "tree", "effort": 0, "recall": 1.0})
    save_file(load_file(folder / NUMBERS), folder / NUMBERS, metadata={"index": facts})


def a_kind_that_it_is_not(folder: Path) -> None:
    facts = json.dumps({"kind": "ivf", "effort": 0, "recall": 1.0})
    save_file(load_file(folder / NUMBERS), folder / NUMBERS, metadata={"index": facts})


SPOILT = {
    "the index's structure is cut": (cut(STRUCTURE, 0.5), STRUCTURE),
    "the index's structure is cut to its head": (cut(STRUCTURE, 0.02), STRUCTURE),
    "the index's structure is empty": (cut(STRUCTURE, 0), STRUCTURE),
    "the index's numbers are cut": (cut(NUMBERS, 0.5), NUMBERS),
    "the index's facts are gone": (other_numbers, NUMBERS),
    "the index's numbers are too few": (numbers_of_another_size, "bundle"),
    "the index is of an unknown kind": (another_kind, "bundle"),
    "the index is of a kind that it is not": (a_kind_that_it_is_not, "bundle"),
    "the gallery is junk": (junk(GALLERY, "junk"), GALLERY),
    "the gallery is cut": (cut(GALLERY, 0.5), GALLERY),
    "the gallery is empty": (cut(GALLERY, 0), GALLERY),
    "an id is null": (null_id, GALLERY),
    "an id repeats": (repeated_id, GALLERY),
    "a category is null": (null_category, GALLERY),
    "the ids are gone": (no_ids, GALLERY),
    "the ids are no text": (numbers_for_ids, GALLERY),
    "the encoder's settings are deep": (junk(FILES[1], DEEP), "encoder"),
    "the encoder's settings are a list": (junk(FILES[1], "[]"), "encoder"),
    "the encoder's preprocessing is deep": (junk(FILES[2], DEEP), "encoder"),
    "the encoder's weights are cut": (cut(FILES[0], 0.5), "encoder"),
    "the head's settings are deep": (junk(FILES[4], DEEP), "head"),
    "the head's weights are cut": (cut(FILES[3], 0.5), "head"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_damaged_part_with_the_right_hash_is_refused_by_its_name(copy: Path, case: str) -> None:
    spoil, named = SPOILT[case]
    spoil(copy)
    sign(copy)
    with pytest.raises(WeightsError) as caught:
        bundle.load(copy)
    assert named in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "content", [DEEP, '{"format": 2, "config": ' + DEEP, "\x00", '{"format": 2}']
)
def test_a_manifest_that_is_no_manifest_is_refused(copy: Path, content: str) -> None:
    (copy / MANIFEST).write_text(content)
    with pytest.raises(WeightsError, match="bundle"):
        bundle.load(copy)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(WeightsError, match="not a regular file"):
        bundle.load(copy)


def not_finite(folder: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        features = bundle.gallery_features(table).copy()
        features[3, 2] = float("nan")
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(features.reshape(-1)), features.shape[1]
        )
        return table.set_column(table.column_names.index("feature"), "feature", column)

    change_table(folder, change)


def no_features(folder: Path) -> None:
    change_table(folder, lambda table: table.drop_columns("feature"))


def features_of_doubles(folder: Path) -> None:
    column = pa.array([[1.0, 2.0]] * 12, pa.list_(pa.float64(), 2))
    change_table(
        folder, lambda table: table.drop_columns("feature").append_column("feature", column)
    )


@pytest.mark.parametrize(
    "spoil", [not_finite, no_features, features_of_doubles, null_id, repeated_id]
)
def test_a_gallery_that_a_database_would_begin_with_is_looked_at_first(
    copy: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(copy)
    with pytest.raises(WeightsError, match=GALLERY):
        bundle.read_gallery(copy)
    with pytest.raises(WeightsError, match=GALLERY):
        list(bundle.gallery_parts(copy))
