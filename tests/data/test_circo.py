"""CIRCO's annotations, and mAP@k of a hand-made table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from raycd.data import circo
from raycd.data.schema import targets_of
from raycd.errors import DataError
from raycd.evaluate import evaluate
from raycd.features import Features

IDS = range(1, 9)  # images, in COCO's order
QUERIES = [
    {"id": 0, "reference_img_id": 1, "relative_caption": "is red. ", "gt_img_ids": [3, 5, 8]},
    {"id": 1, "reference_img_id": 2, "relative_caption": "Is long", "gt_img_ids": [2]},
    {"id": 2, "reference_img_id": 4, "relative_caption": "is new", "gt_img_ids": [7, 6]},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, QUERIES)
    pictures = tmp_path / circo.IMAGES
    pictures.mkdir(parents=True)
    for number in IDS:
        if number != 6:
            (pictures / f"{number:012d}.jpg").write_bytes(b"x")
    return tmp_path


def write(root: Path, queries: Any) -> None:
    infos = [{"id": number, "file_name": f"{number:012d}.jpg", "width": 640} for number in IDS]
    for name, content in ((circo.GALLERY, {"images": infos}), ("annotations/val.json", queries)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))


def test_queries_have_all_ground_truths_as_targets(root: Path) -> None:
    data = circo.read(str(root))
    rows = data.triplets.to_pylist()
    assert [row["triplet_id"] for row in rows] == ["circo/val/0", "circo/val/1", "circo/val/2"]
    assert [targets_of(row) for row in rows] == [["3", "5", "8"], ["2"], ["7", "6"]]
    assert rows[0]["captions"] == ["is red. "]
    assert data.gallery_ids("circo", "val") == [str(number) for number in IDS]
    paths = dict(zip(data.images["image_id"].to_pylist(), data.images["path"].to_pylist()))  # noqa: B905
    assert paths["3"] == f"{root}/{circo.IMAGES}/000000000003.jpg"
    assert paths["6"] is None


def test_map_of_a_hand_made_table_is_circos(root: Path) -> None:
    """Each query finds the images in a given order; AP@k is written out by hand."""
    orders = {"1": [3, 1, 5, 2, 4, 6, 8, 7], "2": [4, 2, 1, 3, 5, 6, 7, 8], "4": list(IDS)}
    images = Features.of([str(number) for number in IDS], torch.eye(8))

    def query(rows: Sequence[Any]) -> torch.Tensor:
        score = torch.zeros(len(rows), 8)
        for number, row in enumerate(rows):
            for position, image in enumerate(orders[row["reference"]]):
                score[number, image - 1] = 8 - position
        return score

    found = evaluate(circo.read(str(root)), "val", images, query, ks=(5,), map_ks=(2, 5, 10, 50))
    # Right at ranks 1, 3, 7 of 3; at 2 of 1; at 6, 7 of 2
    ap = {
        2: (1 / 2, 1 / 2, 0),
        5: ((1 + 2 / 3) / 3, 1 / 2, 0),
        10: ((1 + 2 / 3 + 3 / 7) / 3, 1 / 2, (1 / 6 + 2 / 7) / 2),
    }
    ap[50] = ap[10]
    for k, values in ap.items():
        assert found.recalls["circo"][f"map@{k}"] == pytest.approx(sum(values) / 3, abs=1e-12)
    assert found.recalls["average"]["recall@5"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("queries", "parts"),
    [
        ([{**QUERIES[0], "gt_img_ids": []}], ["entry 0 has the wrong shape", "gt_img_ids"]),
        ([{"id": 1}], ["entry 0 has the wrong shape", "relative_caption"]),
        ([{**QUERIES[0], "gt_img_ids": [3, 99]}], ["names an image outside its split", "99"]),
        ({"a": 1}, ["val.json has the wrong shape", "a list of queries"]),
    ],
)
def test_a_spoilt_entry_is_named(root: Path, queries: Any, parts: list[str]) -> None:
    write(root, queries)
    with pytest.raises(DataError) as caught:
        circo.read(str(root))
    for part in parts:
        assert part in str(caught.value)


def test_there_is_no_train_split(root: Path) -> None:
    with pytest.raises(DataError, match="some of val, test"):
        circo.read(str(root), ["train"])
