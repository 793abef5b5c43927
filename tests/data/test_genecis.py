"""GeneCIS's tasks: each query ranks a small gallery of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raycd.data import genecis, images, parts
from raycd.errors import DataError
from raycd.evaluate import evaluate
from raycd.features import Features

BOXES = [[10, 20, 30, 40], [0, 0, 16, 16], [50, 40, 10, 6.5]]


def box(number: int) -> dict[str, Any]:
    return {"image_id": 7, "instance_bbox": BOXES[number]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write two tasks of two queries."""
    for folder in ("genecis", genecis.ATTRIBUTES, genecis.OBJECTS):
        (tmp_path / folder).mkdir()
    objects = [
        {
            "reference": {"val_image_id": 1, "instance_bbox": BOXES[0]},
            "target": {"val_image_id": 2},
            "gallery": [{"val_image_id": 3}, {"val_image_id": 4}],
            "condition": "car",
        },
        {"reference": 2, "target": 4, "gallery": [1, 3], "condition": "dog"},
    ]
    attribute = {"reference": box(0), "target": box(1), "gallery": [box(2)], "condition": "color"}
    (tmp_path / "genecis/focus_object.json").write_text(json.dumps(objects))
    (tmp_path / "genecis/change_attribute.json").write_text(json.dumps([attribute]))
    for number in (1, 2, 3):  # 4 is missing
        picture = Image.new("RGB", (20, 20), (60 * number, 0, 0))
        picture.save(tmp_path / genecis.OBJECTS / f"{number:012d}.jpg")
    pixels = np.arange(60 * 80 * 3, dtype=np.uint32).reshape(60, 80, 3) % 251
    Image.fromarray(pixels.astype(np.uint8)).save(
        tmp_path / genecis.ATTRIBUTES / "7.jpg", quality=95
    )
    return tmp_path


def test_a_query_ranks_its_own_gallery(root: Path) -> None:
    data = genecis.read(str(root), ["focus_object"])
    first, second = data.triplets.to_pylist()
    assert (first["reference"], first["target"], first["subset"]) == ("1", "2", ["2", "3", "4"])
    assert (second["captions"], second["subset"]) == (["dog"], ["4", "1", "3"])
    # Like 1: 1, 3, 2, 4. Among 2, 3, 4: 2 is second. Like 2: 2, 4, 1, 3. Among 4, 1, 3: 4 is first.
    angles = torch.tensor([0.0, 30.0, -20.0, 55.0]) * torch.pi / 180
    features = Features.of(list("1234"), torch.stack([angles.cos(), angles.sin()], dim=1))

    def query(rows: Sequence[Any]) -> torch.Tensor:
        return features.take(row["reference"] for row in rows)

    found = evaluate(data, "val", features, query, ks=(1,))
    assert found.subset_ranks == {"focus_object/val/0": 2, "focus_object/val/1": 1}
    assert found.recalls["focus_object"] == {
        **{"recall@1": 0.0, "recall_subset@1": 0.5},
        **{"recall_subset@2": 1.0, "recall_subset@3": 1.0},
    }


def test_images_of_attribute_tasks_are_parts_of_photographs(root: Path) -> None:
    data = genecis.read(str(root), ["change_attribute", "focus_object"])
    assert data.categories() == ["change_attribute", "focus_object"]
    paths = {row["image_id"]: row["path"] for row in data.images.to_pylist()}
    assert paths["4"] is None
    assert paths["2"] == f"{root}/val2017/000000000002.jpg"
    assert list(paths)[:3] == ["7:10,20,30,40", "7:0,0,16,16", "7:50,40,10,6.5"]
    photo = np.asarray(Image.open(root / genecis.ATTRIBUTES / "7.jpg"))
    # 0.7 of its sides further left and above, 1.7 times as large, cut at the photograph's edge
    part = images.load(paths["7:10,20,30,40"])
    assert part.size == (60, 60)
    left, right = 0, 51  # max(0, 10 - 21), + 1.7 * 30
    inside = np.asarray(part)
    offset = (60 - 51) // 2
    assert (inside[:, offset : offset + 51] == photo[0:60, left:right]).all()
    assert (inside[:, :offset] == 0).all()
    assert (inside[:, offset + 51 :] == 0).all()
    assert images.load(paths["7:0,0,16,16"]).size == (27, 27)


@pytest.mark.parametrize("corner", [(500, 500), (500, 10), (10, 500)])
def test_a_part_outside_of_the_picture_is_broken(root: Path, corner: tuple[int, int]) -> None:
    path = f"{root}/{genecis.ATTRIBUTES}/7.jpg" + parts.dilated(parts.Box(*corner, 4, 4))
    with pytest.raises(images.BrokenImage) as caught:
        images.load(path)
    assert caught.value.reason == "too_small"


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({"reference": 1, "target": 2, "gallery": 3, "condition": "x"}, "entry 0 has the wrong"),
        (
            {"reference": 1, "target": "x", "gallery": [3], "condition": "x"},
            "entry 0 has the wrong",
        ),
        ({"reference": 1, "target": 2, "gallery": [3]}, "entry 0 has no condition"),
    ],
)
def test_a_spoilt_entry_is_named(root: Path, entry: Any, part: str) -> None:
    (root / "genecis/focus_object.json").write_text(json.dumps([entry]))
    with pytest.raises(DataError, match=part):
        genecis.read(str(root), ["focus_object"])


def test_a_missing_task_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"focus_attribute\.json"):
        genecis.read(str(root))
