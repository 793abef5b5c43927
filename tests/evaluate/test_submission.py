"""Answers to secret test splits, in the formats of their servers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from raycd.data import circo, cirr
from raycd.errors import ConfigError, DataError
from raycd.evaluate import submission
from raycd.features import Features


def write(root: Path, name: str, content: Any) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))


def towards(images: Features) -> Any:
    """Return queries that look where the reference does."""

    def query(triplets: Sequence[Any]) -> torch.Tensor:
        return images.take(triplet["reference"] for triplet in triplets)

    return query


def around(names: Sequence[str]) -> Features:
    """Return features at 10 degrees from one to the next: each is nearest to its neighbours."""
    angle = torch.arange(len(names)) * torch.pi / 18
    return Features.of(list(names), torch.stack([angle.cos(), angle.sin()], dim=1))


@pytest.fixture
def cirr_root(tmp_path: Path) -> Path:
    """CIRR's test1 with sixty images, of which groups of six are asked about."""
    names = [f"test1-{number}" for number in range(60)]
    write(tmp_path, "image_splits/split.rc2.test1.json", {n: f"./test1/{n}.png" for n in names})
    entries = [
        {
            "pairid": 12063 + number,
            "reference": names[first],
            "caption": "Make it blue. ",
            "img_set": {"id": number, "members": names[first : first + 6]},
        }
        for number, first in enumerate((0, 30, 6))
    ]
    write(tmp_path, "captions/cap.rc2.test1.json", entries)
    return tmp_path


def test_cirrs_files_are_what_its_server_reads(cirr_root: Path) -> None:
    data = cirr.read(str(cirr_root), ["test"])
    names = data.gallery_ids("cirr", "test")
    images = around(names[:36])  # more would come round
    ranked = submission.rank(data, "test", images, towards(images), mask_reference=True)
    files = submission.cirr(ranked)
    assert list(files) == ["recall_submission.json", "recall_subset_submission.json"]
    recall, subset = files.values()
    assert json.loads(json.dumps(recall)) == recall
    assert (recall.pop("version"), recall.pop("metric")) == ("rc2", "recall")
    assert (subset.pop("version"), subset.pop("metric")) == ("rc2", "recall_subset")
    assert list(recall) == list(subset) == ["12063", "12064", "12065"]
    assert set(recall["12063"][:2]) == {"test1-1", "test1-35"}
    assert all(len(set(best)) == len(best) == 35 for best in recall.values())
    assert names[0] not in recall["12063"]
    assert subset["12064"] == ["test1-31", "test1-32", "test1-33"]  # no reference, nobody else
    assert (len(ranked.missing), ranked.unasked) == (24, [])


def test_a_head_that_re_ranks_orders_subsets_too(cirr_root: Path) -> None:
    data = cirr.read(str(cirr_root), ["test"])
    images = around(data.gallery_ids("cirr", "test")[:36])

    def farthest(triplets: Sequence[Any], gallery_GD: torch.Tensor) -> Any:
        return lambda rows, score_BG: torch.where(score_BG == -torch.inf, score_BG, -score_BG)

    ranked = submission.rank(
        data, "test", images, towards(images), mask_reference=True, rerank=farthest
    )
    _, subset = submission.cirr(ranked).values()
    assert subset["12064"] == ["test1-35", "test1-34", "test1-33"]


def test_at_most_fifty_images_are_named(cirr_root: Path) -> None:
    data = cirr.read(str(cirr_root), ["test"])
    images = around(data.gallery_ids("cirr", "test"))
    ranked = submission.rank(data, "test", images, towards(images), mask_reference=True)
    assert {len(best) for best in ranked.gallery.values()} == {50}


def test_a_query_without_its_reference_is_answered_and_counted(cirr_root: Path) -> None:
    data = cirr.read(str(cirr_root), ["test"])
    names = data.gallery_ids("cirr", "test")
    images = around([name for name in names if name not in ("test1-30", "test1-8")])
    ranked = submission.rank(data, "test", images, towards(images), mask_reference=True)
    assert ranked.unasked == ["cirr/test/12064"]
    recall, subset = submission.cirr(ranked).values()
    assert recall["12064"] == [name for name in names if name != "test1-30"][:50]
    assert subset["12064"] == ["test1-31", "test1-32", "test1-33"]
    # A member that is missing comes after those that are not
    assert ranked.subsets["cirr/test/12065"][-1] == "test1-8"


def test_circos_file_holds_cocos_numbers_and_keeps_the_reference(tmp_path: Path) -> None:
    infos = [{"id": 100 + number, "file_name": f"{100 + number:012d}.jpg"} for number in range(18)]
    write(tmp_path, circo.GALLERY, {"images": infos})
    queries = [
        {"id": 0, "reference_img_id": 103, "relative_caption": "is red", "shared_concept": "a dog"},
        {
            "id": 1,
            "reference_img_id": 110,
            "relative_caption": "is long",
            "shared_concept": "a hat",
        },
    ]
    write(tmp_path, "annotations/test.json", queries)
    data = circo.read(str(tmp_path), ["test"])
    images = around(data.gallery_ids("circo", "test"))
    ranked = submission.rank(data, "test", images, towards(images), mask_reference=False)
    [(name, answers)] = submission.circo(ranked).items()
    assert name == "circo_submission.json"
    assert list(answers) == ["0", "1"]
    assert answers["0"][0] == 103
    assert sorted(answers["0"]) == list(range(100, 118))


def test_other_data_sets_have_no_server() -> None:
    with pytest.raises(ConfigError, match="one of: cirr, circo"):
        submission.check_format("fashioniq")


def test_a_split_without_queries_is_refused(cirr_root: Path) -> None:
    data = cirr.read(str(cirr_root), ["test"])
    with pytest.raises(DataError, match="no queries"):
        submission.rank(data, "val", around("ab"), towards(around("ab")), mask_reference=True)
