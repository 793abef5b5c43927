import pytest

from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.schema import GALLERY, TRIPLET, Dataset, targets_of
from raycd.data.selection import SELECTION, hold_out


@pytest.fixture
def dataset() -> Dataset:
    """Return train of two categories, of ten targets with two triplets each and of one target.

    Val has one triplet.
    """
    builder = DatasetBuilder()
    ids = [f"d{i}" for i in range(20)]
    builder.add_gallery("dress", "train", ids, source="x")
    builder.add_gallery("shirt", "train", ["s0", "s1", "d0"], source="x")
    builder.add_gallery("dress", "val", ["v0", "v1", "d1"], source="x")
    for index in range(20):
        row = TripletRow(
            f"dress/{index}", "dress", "train", ids[(index + 1) % 20], ids[index % 10], ["is red"]
        )
        builder.add_triplet(row, where="here")
    builder.add_triplet(
        TripletRow("shirt/0", "shirt", "train", "s0", "s1", ["is red"]), where="here"
    )
    builder.add_triplet(TripletRow("dress/v", "dress", "val", "v0", "d1", ["is red"]), where="here")
    return builder.build({})


def targets(dataset: Dataset, split: str, category: str = "dress") -> set[str]:
    return {
        row["target"]
        for row in dataset.triplets_of(split).to_pylist()
        if row["category"] == category
    }


def test_no_target_is_both_trained_on_and_selected_on(dataset: Dataset) -> None:
    held_out = hold_out(dataset, 0.3, seed=0)
    assert len(targets(held_out, SELECTION)) == 3
    assert len(targets(held_out, "train")) == 7
    assert not targets(held_out, SELECTION) & targets(held_out, "train")
    assert (
        len(held_out.triplets_of(SELECTION)) == 6
    )  # two of each dress target; train keeps the only shirt
    assert len(held_out.triplets_of("train")) == 14 + 1


def test_at_least_one_target_of_a_category_moves_and_one_stays(dataset: Dataset) -> None:
    little, nearly_all = hold_out(dataset, 0.01, seed=0), hold_out(dataset, 0.99, seed=0)
    assert (len(targets(little, SELECTION)), len(targets(little, "train"))) == (1, 9)
    assert (len(targets(nearly_all, SELECTION)), len(targets(nearly_all, "train"))) == (9, 1)
    assert targets(little, "train", "shirt") == targets(nearly_all, "train", "shirt") == {"s1"}


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_a_target_of_several_categories_is_set_aside_in_all_of_them(
    fraction: float, seed: int
) -> None:
    builder = DatasetBuilder()
    ids = [f"i{number}" for number in range(12)]
    shared = {"shirt": ids[:8], "toptee": ids[4:], "hat": ids[4:5]}
    for category, own in shared.items():
        builder.add_gallery(category, "train", [*own, "reference"], source="x")
        for target in own:
            row = TripletRow(
                f"{category}/{target}", category, "train", "reference", target, ["is red"]
            )
            builder.add_triplet(row, where="here")
    held_out = hold_out(builder.build({}), fraction, seed=seed)
    held = {target for category in shared for target in targets(held_out, SELECTION, category)}
    for category, own in shared.items():
        assert targets(held_out, "train", category) == set(own) - held
        assert targets(held_out, "train", category)
    assert targets(held_out, SELECTION, "shirt")
    assert not targets(held_out, SELECTION, "hat")


def test_the_new_gallery_is_the_images_of_its_triplets(dataset: Dataset) -> None:
    held_out = hold_out(dataset, 0.3, seed=0)
    for category in ("dress", "shirt"):  # of the latter there are none
        rows = [
            row
            for row in held_out.triplets_of(SELECTION).to_pylist()
            if row["category"] == category
        ]
        members = held_out.gallery_ids(category, SELECTION)
        assert sorted(members) == sorted(
            {row[side] for row in rows for side in ("reference", "target")}
        )
    assert held_out.gallery.schema.equals(GALLERY)
    assert held_out.triplets.schema.equals(TRIPLET)


def test_everything_else_stays_as_it_was(dataset: Dataset) -> None:
    held_out = hold_out(dataset, 0.3, seed=0)
    assert held_out.images is dataset.images
    assert held_out.gallery.slice(0, len(dataset.gallery)).equals(dataset.gallery)
    assert held_out.triplets_of("val").equals(dataset.triplets_of("val"))
    assert held_out.triplets.drop(["split"]).equals(dataset.triplets.drop(["split"]))


def test_a_fraction_of_zero_changes_nothing(dataset: Dataset) -> None:
    assert hold_out(dataset, 0.0, seed=0) is dataset


def test_the_seed_decides(dataset: Dataset) -> None:
    chosen = [
        frozenset(targets(hold_out(dataset, 0.3, seed=seed), SELECTION)) for seed in (0, 0, 1, 2, 3)
    ]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) > 1


@pytest.mark.parametrize("seed", range(5))
def test_all_targets_of_a_triplet_are_on_the_same_side(seed: int) -> None:
    builder = DatasetBuilder()
    ids = [f"i{number}" for number in range(13)]
    builder.add_gallery("all", "train", ids, source="x")
    for number in range(12):  # 0, 1, 2 are right together, then 3, 4, 5, and so on
        first = number - number % 3
        targets = [ids[first + (number + turn) % 3] for turn in range(2)]
        row = TripletRow(
            f"q/{number}",
            "all",
            "train",
            "i12",
            targets[0],
            ["is red"],
            further_targets=targets[1:],
        )
        builder.add_triplet(row, where="here")
    held_out = hold_out(builder.build({}), 0.25, seed=seed)
    right = {
        split: {t for row in held_out.triplets_of(split).to_pylist() for t in targets_of(row)}
        for split in (SELECTION, "train")
    }
    assert len(right[SELECTION]) == 3
    assert not right[SELECTION] & right["train"]
    assert set(held_out.gallery_ids("all", SELECTION)) == right[SELECTION] | {"i12"}
