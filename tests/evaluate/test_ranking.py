"""Ranks of right images: exact numbers of hand-made galleries."""

import pytest
import torch

from raycd.evaluate import ranking
from raycd.evaluate.ranking import (
    NOT_FOUND,
    average_precision,
    rank_all_targets,
    rank_in_subsets,
    rank_targets,
    recall,
    top_images,
)

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


def test_top_images_come_best_first_and_without_the_masked() -> None:
    scores, found = top_images(torch.stack([EAST, NORTH]), GALLERY, 2)
    assert found.tolist() == [[0, 1], [3, 2]]
    assert torch.allclose(scores, torch.tensor([[1.0, 0.8660254], [1.0, 0.8660254]]))
    _, found = top_images(torch.stack([EAST, NORTH]), GALLERY, 9, positions(0, -1), batch_size=1)
    assert found.tolist() == [[1, 2, 3], [3, 2, 1]]


def test_the_best_of_several_targets_is_the_rank_and_the_others_do_not_count_against_it() -> None:
    # A query at 0 degrees ranks a, b, c, d; b and d are right: only a stands before b.
    targets = torch.tensor([[3, 1], [3, -1], [-1, -1]])
    assert rank_targets(EAST.expand(3, 2), GALLERY, targets).tolist() == [2, 4, NOT_FOUND]
    everyone = rank_all_targets(EAST.expand(3, 2), GALLERY, targets)
    assert everyone.tolist() == [[2, 4], [4, NOT_FOUND], [NOT_FOUND, NOT_FOUND]]


def test_targets_that_tie_do_not_count_against_each_other() -> None:
    gallery = torch.tensor([A, A, A, D])
    targets = torch.tensor([[0, 1]])  # the third, wrong, ties with both
    assert rank_all_targets(EAST[None], gallery, targets).tolist() == [[2, 3]]


def test_a_masked_one_of_several_targets_is_not_found_and_the_others_are() -> None:
    targets, masked = torch.tensor([[0, 2]]), positions(0)
    assert rank_all_targets(EAST[None], GALLERY, targets, masked).tolist() == [[2, NOT_FOUND]]


def test_a_target_without_a_number_comes_after_all_that_have_one() -> None:
    gallery = GALLERY.clone()
    gallery[1] = torch.nan
    found = rank_all_targets(EAST[None], gallery, torch.tensor([[1, 3]]))
    assert found.tolist() == [[3, 4]]  # of d: a and c before it; of b: all others


def test_subsets_are_answered_by_any_target() -> None:
    subsets, targets = torch.tensor([[1, 2, 3]]), torch.tensor([[0, 3, 2]])
    assert rank_in_subsets(EAST[None], GALLERY, targets, subsets).tolist() == [2]


@pytest.mark.parametrize(
    ("ranks", "relevant", "k", "expected"),
    [
        # Hand-made, after CIRCO's definition: sum of precisions at right ranks / min(k, right)
        ([1, 3, 6], 3, 5, (1 / 1 + 2 / 3) / 3),
        ([1, 3, 6], 3, 10, (1 / 1 + 2 / 3 + 3 / 6) / 3),
        ([1, 3, 6], 3, 2, 1 / 2),
        ([2, NOT_FOUND, NOT_FOUND], 1, 5, 1 / 2),
        ([2, NOT_FOUND, NOT_FOUND], 3, 5, 1 / 2 / 3),  # two of three cannot be found
        ([NOT_FOUND, NOT_FOUND, NOT_FOUND], 2, 50, 0.0),
        ([1, 2, 3], 3, 5, 1.0),
    ],
)
def test_average_precision_is_circos(
    ranks: list[int], relevant: int, k: int, expected: float
) -> None:
    found = average_precision(torch.tensor([ranks]), torch.tensor([relevant]), k)
    assert found.tolist() == [pytest.approx(expected, abs=1e-12)]


def test_average_precision_is_that_of_a_list_of_hits() -> None:
    """Compare with the definition written out over ranked lists, at random."""
    generator = torch.Generator().manual_seed(1)
    queries, gallery = (torch.randn(n, 8, generator=generator) for n in (30, 40))
    targets = torch.stack([torch.randperm(40, generator=generator)[:4] for _ in range(30)])
    ranks = rank_all_targets(queries, gallery, targets)
    for k in (1, 5, 10, 50):
        found = average_precision(ranks, torch.full((30,), 4), k)
        for q in range(30):
            ranked = (queries[q] @ gallery.T).argsort(descending=True).tolist()[:k]
            hits = [image in targets[q] for image in ranked]
            precisions = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
            assert float(found[q]) == pytest.approx(sum(precisions) / min(k, 4), abs=1e-9)


def test_a_large_gallery_is_scored_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    gallery = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    targets, subsets = torch.arange(7)[:, None] % 5, torch.tensor([[0, 2, -1]] * 7)
    seen: list[int] = []

    def rescore(rows: slice, score_BG: torch.Tensor) -> torch.Tensor:
        seen.append(len(score_BG))
        return score_BG

    def found() -> list[torch.Tensor]:
        ranks = rank_all_targets(queries, gallery, targets, rescore=rescore)
        in_subsets = rank_in_subsets(queries, gallery, targets, subsets, rescore)
        return [ranks, in_subsets, top_images(queries, gallery, 2)[1]]

    together = found()
    assert seen == [7, 7]
    monkeypatch.setattr(ranking, "SCORES", 11)
    assert all(map(torch.equal, found(), together))
    assert seen[2:] == [2, 2, 2, 1] * 2
