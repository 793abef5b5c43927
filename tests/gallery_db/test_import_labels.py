"""What an import does not say of an image."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from raycd.api.requests import GalleryImage
from raycd.gallery_db import GalleryDatabase
from tests.gallery_db.imported import OURS, contents, images
from tests.gallery_db.values import feature


def test_what_a_table_does_not_say_of_an_image_stays_as_it_was(
    gallery_db: GalleryDatabase, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images([1, 2])) == 0
    before = contents(gallery_db)
    features = images([1, 2, 3]).select(["image_id", "feature"])
    assert run(features, "--encoder", OURS) == 0
    assert "added:     1 images\nreplaced:  0\nunchanged: 2 " in capsys.readouterr().out
    assert contents(gallery_db) == before | {
        "image-3": ("image-3", [], None, [], feature(3).tolist())
    }
    moved = features.slice(0, 1).append_column("path", pa.array(["/elsewhere/1.jpg"]))
    moved = moved.set_column(1, "feature", images([9])["feature"])
    assert run(moved, "--encoder", OURS) == 0
    own = list(before["image-1"])
    own[2], own[4] = "/elsewhere/1.jpg", feature(9).tolist()
    assert contents(gallery_db)["image-1"] == tuple(own)


def test_a_new_image_of_a_gallery_without_categories_is_in_all_too(
    gallery_db: GalleryDatabase, run: Callable[..., int]
) -> None:
    features = images([1, 2]).select(["image_id", "feature"])
    assert run(features.slice(0, 1), "--encoder", OURS, "--category", "all") == 0
    assert run(features, "--encoder", OURS) == 0
    assert contents(gallery_db)["image-2"][1] == ["all"]
    assert run(images([3])) == 0  # from now on it has categories
    others = images([4]).select(["image_id", "feature"])
    assert run(others, "--encoder", OURS) == 0
    assert contents(gallery_db)["image-4"][1] == []


def test_a_category_that_is_named_twice_is_one(
    gallery_db: GalleryDatabase, run: Callable[..., int]
) -> None:
    table = images([1])
    twice = pa.array([["dress", "shirt", "dress"]], table["categories"].type)
    assert run(table.set_column(1, "categories", twice)) == 0
    assert contents(gallery_db)["image-1"][1] == ["dress", "shirt"]
    assert GalleryImage(feature=[1.0], encoder="a" * 12, category=["b", "a", "b"]).category == [
        "b",
        "a",
    ]
