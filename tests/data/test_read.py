import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from raycd.config import DataConfig, SyntheticConfig
from raycd.data import files
from raycd.data.demo.synthetic import write_demo_data
from raycd.data.read import attributes_hash, content_hash, read, wording
from raycd.data.schema import Dataset


def test_changed_attributes_change_their_own_hash_alone(tmp_path: Path) -> None:
    small = SyntheticConfig(train_images=5, val_images=5, train_triplets=2, val_triplets=2, size=32)
    write_demo_data(tmp_path, small)
    config = DataConfig(format="synthetic", root=str(tmp_path))
    before = read(config)
    file = tmp_path / "attributes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"DV000000": {"colour": "beige"}}))
    after = read(config)
    assert content_hash(after) == content_hash(before)
    assert attributes_hash(after) != attributes_hash(before)
    assert attributes_hash(read(config)) == attributes_hash(after)


def own(root: Path) -> Dataset:
    """Return a manifest data set of twelve images, the last of which is missing."""
    (root / "images").mkdir(parents=True)
    for n in range(11):
        (root / "images" / f"{n}.png").write_bytes(b"%d" % n)
    lines = ["image_id,path", *(f"{n},images/{n}.png" for n in range(12))]
    (root / "gallery.csv").write_text("\n".join(lines))
    (root / "triplets.csv").write_text("reference,target,caption\n1,2,is red\n")
    return again(root)


def again(root: Path) -> Dataset:
    return read(
        DataConfig(
            format="manifest", root=str(root), gallery="gallery.csv", triplets="triplets.csv"
        )
    )


def put_back(images: Path) -> None:
    (images / "11.png").write_bytes(b"11")


def replace_by_one_of_the_same_size(images: Path) -> None:
    (images / "new").write_bytes(b"x")
    (images / "new").rename(images / "3.png")


def replace_by_an_older_one(images: Path) -> None:
    (images / "3.png").write_bytes(b"x")
    os.utime(images / "3.png", (1, 1))


def lose(images: Path) -> None:
    (images / "0.png").unlink()


def cut_to_nothing(images: Path) -> None:
    before = (images / "0.png").stat()
    (images / "0.png").write_bytes(b"")
    os.utime(images / "0.png", ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [put_back, replace_by_one_of_the_same_size, replace_by_an_older_one, lose, cut_to_nothing],
)
def test_a_changed_file_changes_the_hash_of_the_content(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    before = content_hash(own(tmp_path))
    change(tmp_path / "images")
    after = content_hash(again(tmp_path))
    assert after != before
    assert content_hash(again(tmp_path)) == after


def test_another_part_of_the_same_file_changes_the_hash_of_the_content(tmp_path: Path) -> None:
    data = own(tmp_path)
    paths = data.images["path"].to_pylist()

    def at(box: str) -> str:
        ends = pa.array([paths[0] + box, *paths[1:]])
        column = data.images.schema.get_field_index("path")
        return content_hash(
            dataclasses.replace(data, images=data.images.set_column(column, "path", ends))
        )

    first, second = at("#dilated=10,20,30,40"), at("#dilated=10,20,30,41")
    assert len({content_hash(data), first, second}) == 3
    assert at("") == content_hash(data)


def test_a_moved_data_set_has_the_same_content(tmp_path: Path) -> None:
    before = content_hash(own(tmp_path / "here"))
    shutil.copytree(
        tmp_path / "here", tmp_path / "there"
    )  # keeps modification times, as cp -a and rsync -a do
    assert content_hash(again(tmp_path / "there")) == before


def test_only_the_sizes_of_drawn_images_count(tmp_path: Path) -> None:
    data = own(tmp_path)
    before = content_hash(data, drawn=True)
    os.utime(tmp_path / "images" / "3.png", (1, 1))
    assert content_hash(data, drawn=True) == before
    lose(tmp_path / "images")
    assert content_hash(data, drawn=True) != before


def test_the_hash_of_a_data_set_of_single_targets_is_that_of_earlier_versions(
    tmp_path: Path,
) -> None:
    data = own(tmp_path / "a")
    before = dataclasses.replace(
        data, triplets=data.triplets.drop(["further_targets", "weight", "negatives"])
    )
    parts = [
        data.images["image_id"].to_pylist(),
        files.states(data.images["path"].to_pylist()),
        data.gallery.to_pydict(),
        before.triplets.to_pydict(),
    ]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode())
    assert content_hash(data) == digest.hexdigest()
    (tmp_path / "a/triplets.csv").write_text("reference,targets,caption\n1,2|3,is red\n")
    assert content_hash(again(tmp_path / "a")) != content_hash(data)


@pytest.mark.parametrize(
    ("format", "captions", "raw"),
    [
        ("fashioniq", "auto", False),
        ("manifest", "auto", False),
        ("cirr", "auto", True),
        ("cirr", "cleaned", False),
        ("manifest", "raw", True),
    ],
)
def test_captions_are_raw_by_format_or_as_set(format: str, captions: str, raw: bool) -> None:
    config = DataConfig.model_validate({"format": format, "captions": captions})
    text = wording(config).evaluation(["is red., ", "Long"])
    assert text == ("is red.,  and Long" if raw else "Is red and Long")
