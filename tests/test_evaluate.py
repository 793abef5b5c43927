from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.schema import Dataset
from raycd.errors import DataError
from raycd.evaluate import (
    NOT_FOUND,
    Evaluation,
    average,
    cached_query,
    evaluate,
    rank_in_subsets,
    rank_targets,
    recall,
    top_images,
)
from raycd.features import Features

# Four images on the axes of a plane, in steps of 30 degrees; a query at 0 degrees ranks them a, b,
# c, d.
A, B, C, D = (1.0, 0.0), (0.8660254, 0.5), (0.5, 0.8660254), (0.0, 1.0)
GALLERY = torch.tensor([A, B, C, D])
EAST, NORTH = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])


def positions(*values: int) -> torch.Tensor:
    return torch.tensor(values)


def test_rank_is_one_plus_the_images_that_score_higher() -> None:
    queries = torch.stack([EAST, EAST, NORTH, NORTH])
    assert rank_targets(queries, GALLERY, positions(0, 3, 0, 2)).tolist() == [1, 4, 4, 2]


def test_exact_ties_count_against_us_wherever_they_stand() -> None:
    gallery = torch.tensor([A, A, D, A])
    assert rank_targets(EAST.expand(3, 2), gallery, positions(0, 1, 3)).tolist() == [3, 3, 3]
    assert rank_targets(EAST[None], torch.ones(5, 2), positions(2)).tolist() == [5]


def test_scores_that_are_not_numbers_count_against_us() -> None:
    gallery = GALLERY.clone()
    gallery[1] = torch.nan
    assert rank_targets(EAST[None], gallery, positions(0)).tolist() == [2]
    assert rank_targets(EAST[None], gallery, positions(1)).tolist() == [4]
    assert rank_targets(EAST[None] * torch.nan, GALLERY, positions(0)).tolist() == [4]


def test_a_masked_image_is_no_candidate() -> None:
    queries = EAST.expand(4, 2)
    masked = positions(0, 3, -1, 2)
    assert rank_targets(queries, GALLERY, positions(2, 2, 2, 2), masked).tolist() == [
        2,
        3,
        3,
        NOT_FOUND,
    ]


def test_a_target_outside_the_gallery_is_not_found() -> None:
    assert rank_targets(EAST[None], GALLERY, positions(-1)).tolist() == [NOT_FOUND]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, gallery = (torch.randint(-3, 4, (n, 4), generator=generator).float() for n in (10, 20))
    targets, masked = (torch.randint(0, 20, (10,), generator=generator) for _ in range(2))
    got = rank_targets(queries, gallery, targets, masked, batch_size=batch_size).tolist()
    scores = queries @ gallery.T
    for q in range(10):
        others = [g for g in range(20) if g not in (int(targets[q]), int(masked[q]))]
        expected = 1 + sum(bool(scores[q, g] >= scores[q, targets[q]]) for g in others)
        assert got[q] == (NOT_FOUND if targets[q] == masked[q] else expected)


def test_subsets_rank_only_their_members() -> None:
    subsets = torch.tensor([[1, 3, -1], [3, 2, 1], [1, 3, -1]])
    assert rank_in_subsets(EAST.expand(3, 2), GALLERY, positions(3, 2, 2), subsets).tolist() == [
        2,
        2,
        NOT_FOUND,
    ]
    tied = torch.tensor([A, D, A, A])
    assert rank_in_subsets(EAST[None], tied, positions(2), torch.tensor([[2, 3, 1]])).tolist() == [
        2
    ]


def test_recall_is_a_fraction_for_any_k() -> None:
    ranks = positions(1, 3, 11, NOT_FOUND)
    assert recall(ranks, (1, 10, 1000)) == {"recall@1": 0.25, "recall@10": 0.5, "recall@1000": 0.75}


def test_average_is_not_weighted_by_queries() -> None:
    assert average([{"recall@10": 0.2}, {"recall@10": 0.6}, {"recall@10": 0.7}]) == {
        "recall@10": pytest.approx(0.5)
    }


def test_top_images_come_best_first_and_without_the_masked() -> None:
    scores, found = top_images(torch.stack([EAST, NORTH]), GALLERY, 2)
    assert found.tolist() == [[0, 1], [3, 2]]
    assert torch.allclose(scores, torch.tensor([[1.0, 0.8660254], [1.0, 0.8660254]]))
    _, found = top_images(torch.stack([EAST, NORTH]), GALLERY, 9, positions(0, -1), batch_size=1)
    assert found.tolist() == [[1, 2, 3], [3, 2, 1]]


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
    rows = {image_id: row for image_id, row in IMAGES.rows.items() if image_id != "b"}
    found = run(dataset(*DRESSES, ("dress", "c", "d")), protocol, Features(rows, IMAGES.values))
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


def test_subset_recall_ranks_inside_the_group_without_the_reference() -> None:
    found = run(dataset(("dress", "a", "d"), ("dress", "a", "c"), subset="abcd"))
    # Among b, c, d: d is third, c second.
    subset = {name: value for name, value in found.recalls["dress"].items() if "subset" in name}
    assert subset == {"recall_subset@1": 0.0, "recall_subset@2": 0.5, "recall_subset@3": 1.0}
    assert found.recalls["average"]["recall_subset@3"] == 1.0
    assert found.ranks == {"dress/0": 4, "dress/1": 3}


def test_queries_in_batches_give_the_same_answer() -> None:
    data = dataset(*DRESSES, ("shirt", "d", "e"))
    assert run(data, batch_size=1) == run(data)


def test_cached_queries_join_reference_and_evaluation_text() -> None:
    class Head(nn.Module):
        def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            return image + 10 * text

    texts = Features.of(["Is red and Long"], torch.tensor([[1.0, 2.0]]))
    triplets = dataset(("dress", "a", "b")).triplets.to_pylist()
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
