from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.schema import Dataset
from raycd.errors import ConfigError, DataError
from raycd.evaluate import Evaluation, Mean, average, cached_query, evaluate
from raycd.features import Features

# Four images on the axes of a plane, in steps of 30 degrees; a query at 0 degrees ranks them a, b,
# c, d.
A, B, C, D = (1.0, 0.0), (0.8660254, 0.5), (0.5, 0.8660254), (0.0, 1.0)


def test_average_is_not_weighted_by_queries() -> None:
    assert average([{"recall@10": 0.2}, {"recall@10": 0.6}, {"recall@10": 0.7}]) == {
        "recall@10": pytest.approx(0.5)
    }


def dataset(*triplets: tuple[str, str, str], subset: Sequence[str] | None = None) -> Dataset:
    """Return galleries dress: a b c d and shirt: d e; a triplet is "category reference target"."""
    builder = DatasetBuilder()
    builder.add_gallery("dress", "val", "abcd", source="dress.json")
    builder.add_gallery("shirt", "val", "de", source="shirt.json")
    for index, (category, reference, target) in enumerate(triplets):
        members = list(subset) if subset else None
        row = TripletRow(
            f"{category}/{index}", category, "val", reference, target, ["is red.", "Long "], members
        )
        builder.add_triplet(row, where="here")
    return builder.build({})


# Un-normalised on purpose: `evaluate` compares directions.
IMAGES = Features.of(
    "abcde", torch.tensor([A, B, C, D, A]) * torch.tensor([[1.0], [9.0], [2.0], [3.0], [4.0]])
)
WITHOUT_B = Features.of("acde", IMAGES.values[[0, 2, 3, 4]])
DRESSES = (("dress", "a", "b"), ("dress", "a", "a"), ("dress", "b", "d"))


def like_reference(triplets: Sequence[Any]) -> torch.Tensor:
    """Return queries that point where the reference does."""
    return IMAGES.take(triplet["reference"] for triplet in triplets)


def run(
    data: Dataset, protocol: Any = "original", images: Features = IMAGES, **options: Any
) -> Evaluation:
    return evaluate(data, "val", images, like_reference, protocol=protocol, ks=(1, 2, 3), **options)


def test_reference_image_stays_in_the_gallery_under_the_original_protocol() -> None:
    found = run(dataset(*DRESSES, ("shirt", "d", "e")))
    # a -> b: a, b. a -> a: first. b -> d: b, a and c before it. d -> e: d, e.
    assert found.ranks == {"dress/0": 2, "dress/1": 1, "dress/2": 4, "shirt/3": 2}
    assert found.recalls == {
        "dress": {
            "recall@1": pytest.approx(1 / 3),
            "recall@2": pytest.approx(2 / 3),
            "recall@3": pytest.approx(2 / 3),
        },
        "shirt": {"recall@1": 0.0, "recall@2": 1.0, "recall@3": 1.0},
        "average": {
            "recall@1": pytest.approx(1 / 6),
            "recall@2": pytest.approx(5 / 6),
            "recall@3": pytest.approx(5 / 6),
        },
    }
    assert found.gallery == {"dress": 4, "shirt": 2}
    assert found.queries == {"dress": 3, "shirt": 1}
    assert found.missing_queries == found.missing_gallery == {"dress": [], "shirt": []}


def test_reference_image_is_removed_under_the_masked_protocol() -> None:
    found = run(dataset(*DRESSES), "original-masked")
    assert found.ranks == {"dress/0": 1, "dress/1": None, "dress/2": 3}
    assert found.gallery == {"dress": 4}


def test_only_images_of_triplets_are_searched_under_the_val_protocol() -> None:
    far = (("dress", "d", "a"),)
    assert run(dataset(*far)).ranks == {"dress/0": 4}
    found = run(dataset(*far), "val")
    assert found.ranks == {"dress/0": 1}  # its reference is removed
    assert found.gallery == {"dress": 2}


@pytest.mark.parametrize("protocol", ["original", "original-masked", "val"])
def test_missing_images_are_reported_and_their_queries_count_as_not_found(protocol: Any) -> None:
    found = run(dataset(*DRESSES, ("dress", "c", "d")), protocol, WITHOUT_B)
    assert found.missing_queries == {"dress": ["dress/0", "dress/2"]}
    assert found.missing_gallery == {"dress": ["b"]}
    assert found.gallery == {"dress": 3}
    assert found.queries == {"dress": 4}
    assert found.ranks["dress/0"] is None
    assert found.ranks["dress/2"] is None
    assert found.recalls["dress"]["recall@3"] == (0.5 if protocol == "original" else 0.25)


def test_all_queries_missing_is_a_recall_of_zero() -> None:
    found = run(dataset(*DRESSES), images=Features.of("e", torch.ones(1, 2)))
    assert found.recalls["average"] == {"recall@1": 0.0, "recall@2": 0.0, "recall@3": 0.0}


@pytest.mark.parametrize("protocol", ["original", "original-masked", "val"])
def test_subset_recall_ranks_inside_the_group_without_the_reference(protocol: Any) -> None:
    found = run(dataset(("dress", "a", "d"), ("dress", "a", "c"), subset="abcd"), protocol)
    # Among b, c, d: d is third, c second.
    subset = {name: value for name, value in found.recalls["dress"].items() if "subset" in name}
    assert subset == {"recall_subset@1": 0.0, "recall_subset@2": 0.5, "recall_subset@3": 1.0}
    assert found.recalls["average"]["recall_subset@3"] == 1.0
    ranks = {"original": (4, 3), "original-masked": (3, 2), "val": (2, 1)}[protocol]
    assert tuple(found.ranks.values()) == ranks  # b is in the subset alone under val


def test_queries_in_batches_give_the_same_answer() -> None:
    data = dataset(*DRESSES, ("shirt", "d", "e"))
    assert run(data, batch_size=1) == run(data)


def test_cached_queries_join_reference_and_evaluation_text() -> None:
    class Head(nn.Module):
        def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return image + 10 * text

    texts = Features.of(["Is red and Long"], torch.tensor([[1.0, 2.0]]))
    triplets = dataset(("dress", "a", "b")).queries("val")
    assert cached_query(Head(), IMAGES, texts)(triplets).tolist() == [[11.0, 20.0]]


def test_a_split_without_triplets_is_refused() -> None:
    with pytest.raises(DataError, match="no triplets"):
        run(dataset())


def test_secret_targets_are_refused() -> None:
    data = dataset(("dress", "a", "b"))
    secret = data.triplets.set_column(
        4, data.triplets.schema.field("target"), [pa.array([None], pa.string())]
    )
    with pytest.raises(DataError, match="secret"):
        run(Dataset(data.images, data.gallery, secret))


def several(*triplets: tuple[str, list[str]]) -> Dataset:
    """Return the gallery a b c d e; a triplet is "reference", targets."""
    builder = DatasetBuilder()
    builder.add_gallery("all", "val", "abcde", source="here")
    for index, (reference, targets) in enumerate(triplets):
        row = TripletRow(
            f"q/{index}",
            "all",
            "val",
            reference,
            targets[0],
            ["is red", "long"],
            further_targets=targets[1:] or None,
        )
        builder.add_triplet(row, where="here")
    return builder.build({})


def test_recall_counts_any_of_several_targets() -> None:
    # Like b: b, then a, c and e at 30 degrees, then d at 60.
    found = run(several(("b", ["d", "c"]), ("b", ["d"])))
    assert found.ranks == {"q/0": 4, "q/1": 5}  # of c: b, and a and e, which tie with it
    found = run(several(("b", ["d", "b"])), "original-masked")
    assert found.ranks == {"q/0": 4}  # b is removed, so it is no answer


def test_a_query_is_asked_with_the_targets_that_can_be_read() -> None:
    data = several(("a", ["b", "c"]), ("a", ["b"]), ("b", ["c", "d"]))
    found = run(data, images=WITHOUT_B, map_ks=[5])
    assert found.ranks == {"q/0": 3, "q/1": None, "q/2": None}
    assert found.missing_queries == {"all": ["q/1", "q/2"]}
    # c is third, and half of what is right: the one that cannot be read stays in the denominator
    assert found.recalls["all"]["map@5"] == pytest.approx(1 / 3 / 2 / 3)


def test_the_val_gallery_holds_all_targets() -> None:
    assert run(several(("d", ["a", "b"])), "val").gallery == {"all": 3}


def test_mean_average_precision_of_a_hand_made_table() -> None:
    data = several(("d", ["b", "c"]), ("a", ["c"]))
    found = run(data, "original-masked", map_ks=[1, 5])
    # Like d, without it: c, b, then a and e. Like a, without it: e, b, c, d.
    assert found.ranks == {"q/0": 1, "q/1": 3}
    assert found.recalls["average"]["map@1"] == pytest.approx((1 + 0) / 2)
    assert found.recalls["average"]["map@5"] == pytest.approx((1 + 1 / 3) / 2)


def test_the_best_images_are_returned_with_their_cosines() -> None:
    found = run(dataset(*DRESSES), "original-masked", top=2)
    assert [image_id for image_id, _ in found.top["dress/0"]] == ["b", "c"]
    assert [score for _, score in found.top["dress/0"]] == pytest.approx([0.8660254, 0.5])


def test_both_orders_ask_each_query_twice() -> None:
    asked: list[str] = []

    def query(triplets: Sequence[Any]) -> torch.Tensor:
        asked.extend(triplet["text"] for triplet in triplets)
        # The reverse looks elsewhere
        return torch.tensor([C if t["text"].startswith("Long") else A for t in triplets])

    data = dataset(("dress", "a", "a"))
    found = evaluate(data, "val", IMAGES, query, ks=(1,), both_orders=True)
    assert asked == ["Is red and Long", "Long and is red"]
    assert found.ranks == {"dress/0": 1, "dress/0/reversed": 4}
    assert found.queries == {"dress": 2}
    assert found.recalls["average"] == {"recall@1": 0.5}


def test_epochs_are_compared_by_the_mean_of_what_is_named() -> None:
    found = run(dataset(("dress", "a", "d"), ("dress", "a", "c"), subset="abcd"))
    average = found.recalls["average"]
    both = Mean(("recall@3", "recall_subset@2"))
    assert both.ks == [3]
    assert both.of(found.recalls) == (average["recall@3"] + average["recall_subset@2"]) / 2
    with pytest.raises(ConfigError, match="recall_subset@1"):
        Mean(("recall_subset@1",)).of(run(dataset(*DRESSES)).recalls)
