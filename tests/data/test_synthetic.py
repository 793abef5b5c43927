from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycd.config import DataConfig, SyntheticConfig
from raycd.data import fashioniq
from raycd.data.demo.drawing import draw
from raycd.data.demo.garments import (
    CHOICES,
    Garment,
    attributes,
    changed,
    differences,
    random_garment,
)
from raycd.data.demo.synthetic import FAMILY, _garments, pretraining_pairs, write_demo_data
from raycd.data.demo.wording import _CHANGE, compare, describe
from raycd.data.images import load
from raycd.data.read import read
from raycd.data.schema import Dataset

SMALL = SyntheticConfig(
    train_images=20, val_images=15, train_triplets=18, val_triplets=7, size=32, seed=5
)
DRESS = Garment(
    "dress",
    colour="red",
    pattern="plain",
    accent="blue",
    sleeves="none",
    length="short",
    neck="round",
    detail="none",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("catalogue")
    write_demo_data(folder, SMALL)
    return folder


@pytest.fixture(scope="module")
def dataset(root: Path) -> Dataset:
    return fashioniq.read(str(root), ["dress", "shirt", "toptee"])


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_draws_the_same_bytes(root: Path, tmp_path: Path) -> None:
    drawn: list[int] = []
    write_demo_data(tmp_path / "again", SMALL, drawn.append)
    assert digests(tmp_path / "again") == digests(root)
    assert sum(drawn) == 3 * (20 + 15)


def test_another_seed_draws_other_images_and_triplets(root: Path, tmp_path: Path) -> None:
    write_demo_data(tmp_path, SMALL.model_copy(update={"seed": 6}))
    one, other = digests(root), digests(tmp_path)
    assert one.keys() == other.keys()
    same = [name for name in one if one[name] == other[name]]
    assert all(name.startswith("image_splits/") for name in same)


def test_the_catalogue_is_read_back_as_fashion_iq(dataset: Dataset, root: Path) -> None:
    assert dataset.categories() == ["dress", "shirt", "toptee"]
    rows = Counter((row["category"], row["split"]) for row in dataset.gallery.to_pylist())
    assert rows == {
        (c, s): n for c in ("dress", "shirt", "toptee") for s, n in (("train", 20), ("val", 15))
    }
    triplets = Counter((row["category"], row["split"]) for row in dataset.triplets.to_pylist())
    assert triplets == {
        (c, s): n for c in ("dress", "shirt", "toptee") for s, n in (("train", 18), ("val", 7))
    }
    assert dataset.images["image_id"].to_pylist()[:2] == ["DT000000", "DT000001"]
    for path in dataset.images["path"].to_pylist():
        assert load(path, max_pixels=1024, min_side=32).size == (32, 32)
    assert read(DataConfig(format="synthetic", root=str(root))).triplets.equals(dataset.triplets)


def test_the_attributes_of_a_picture_are_what_its_garment_shows(dataset: Dataset) -> None:
    rng = np.random.default_rng([SMALL.seed, 0, 0])
    garments = _garments(rng, "dress", SMALL.train_images)
    found = [dict(pairs) for pairs in dataset.images["attributes"].to_pylist()]
    assert found[: SMALL.train_images] == [attributes(garment) for garment in garments]
    assert len(found) == len(dataset.images) == 3 * (20 + 15)
    assert all(
        {"colour", "pattern", "sleeves", "length", "neck", "detail"} <= one.keys() for one in found
    )


def test_an_accent_that_nothing_wears_is_no_attribute() -> None:
    assert attributes(DRESS) == {
        "colour": "red",
        "pattern": "plain",
        "sleeves": "none",
        "length": "short",
        "neck": "round",
        "detail": "none",
    }
    assert attributes(replace(DRESS, detail="belt"))["accent"] == "blue"


def test_a_triplet_joins_two_garments_of_a_family(dataset: Dataset) -> None:
    for row in dataset.triplets.to_pylist():
        reference, target = int(row["reference"][2:]), int(row["target"][2:])
        assert reference != target
        assert reference // FAMILY == target // FAMILY
        assert row["reference"][:2] == row["target"][:2]


def test_no_pair_comes_twice_and_targets_hardly_repeat(dataset: Dataset) -> None:
    rows = dataset.triplets_of("val").to_pylist()
    assert len({(row["reference"], row["target"]) for row in rows}) == len(rows)
    assert len({row["target"] for row in rows}) == len(rows)


def test_the_two_captions_of_a_triplet_differ_in_words(dataset: Dataset) -> None:
    for row in dataset.triplets.to_pylist():
        one, other = row["captions"]
        assert one
        assert other
        assert one != other


def test_a_garment_has_at_least_six_attributes_that_change() -> None:
    assert set(CHOICES) == {"colour", "pattern", "accent", "sleeves", "length", "neck", "detail"}
    assert set(_CHANGE["attributes"]) == set(CHOICES)
    rng = np.random.default_rng(0)
    for name, options in CHOICES.items():
        for value in options:
            target = replace(
                DRESS, pattern="dotted", **({name: value} if name != "pattern" else {})
            )
            target = replace(target, **{name: value})
            if name in differences(DRESS, target):
                assert all(text for text in compare(rng, DRESS, target))


@pytest.mark.parametrize("name", ["colour", "pattern", "sleeves", "length", "neck", "detail"])
def test_every_change_of_an_attribute_shows_in_the_picture(name: str) -> None:
    pictures = set()
    for value in CHOICES[name]:
        garment = replace(DRESS, accent="black", **{name: value}) if value != "black" else DRESS
        pictures.add(draw(np.random.default_rng(3), garment, 64).tobytes())
    assert len(pictures) >= len(CHOICES[name]) - (name == "colour")


def phrases(name: str, value: str) -> tuple[str, ...]:
    spoken = _CHANGE["attributes"][name]
    found = spoken["values"][value] if "values" in spoken else spoken["phrases"]
    return tuple(phrase.format(new=value) for phrase in found)


def test_each_text_names_every_difference_up_to_three() -> None:
    rng = np.random.default_rng(1)
    seen: Counter[int] = Counter()
    for _ in range(300):
        reference = random_garment(rng, "shirt")
        target = changed(rng, reference, int(rng.integers(1, 5)))
        names = differences(reference, target)
        for text in compare(rng, reference, target):
            named = [
                name
                for name in names
                if any(p in text for p in phrases(name, getattr(target, name)))
            ]
            assert len(named) >= min(len(names), 3)
            seen[len(named)] += 1
    assert all(seen[count] > 50 for count in (1, 2, 3))


def test_a_change_changes_as_many_attributes_as_it_is_asked_to() -> None:
    rng = np.random.default_rng(2)
    for count in (1, 2, 3):
        for _ in range(50):
            assert len(differences(DRESS, changed(rng, DRESS, count))) == count


def test_an_accent_that_nothing_wears_is_no_difference() -> None:
    assert differences(DRESS, replace(DRESS, accent="green")) == []
    striped = replace(DRESS, pattern="striped", accent="green")
    assert differences(DRESS, striped) == ["pattern", "accent"]


def test_drawings_of_one_garment_differ_in_nuisance() -> None:
    rng = np.random.default_rng(0)
    pictures = [draw(rng, DRESS, 48) for _ in range(5)]
    assert all(picture.size == (48, 48) and picture.mode == "RGB" for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 5
    assert len({picture.getpixel((0, 0)) for picture in pictures}) > 1  # the background


def test_pretraining_shows_other_images_in_another_language() -> None:
    pairs = list(pretraining_pairs(5, 30, 32))
    assert len(pairs) == 30
    assert all(isinstance(image, Image.Image) and image.size == (32, 32) for image, _ in pairs)
    assert all(text.startswith("a photo of a ") for _, text in pairs)
    assert {text.rsplit(" ", 1)[1] for _, text in pairs} == {"dress", "shirt", "top"}
    assert [text for _, text in pairs] == [text for _, text in pretraining_pairs(5, 30, 32)]
    assert describe(np.random.default_rng(0), DRESS).endswith("dress")
    assert "red" in describe(np.random.default_rng(0), DRESS)
