"""Re-ranking against rankings made by hand."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.schema import Dataset
from raycd.evaluate import Evaluation, cached_query, evaluate, rerank
from raycd.evaluate.ranking import NOT_FOUND, rank_all_targets, top_images
from raycd.features import Features
from raycd.model import fusion
from raycd.model.fusion import Head

IDS = list("abcdefgh")


class Reverse(Head):
    """Queries that are the reference, and candidates in an order that is given."""

    reranks = True

    def __init__(self, added: Sequence[float]) -> None:
        super().__init__()
        self.added = torch.tensor(added)
        self.seen: list[int] = []

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        return F.normalize(image_BD, dim=-1)

    def rerank(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, candidate_BND: torch.Tensor
    ) -> torch.Tensor:
        assert image_BD.shape == text_BD.shape == candidate_BND[:, 0].shape
        self.seen.append(len(image_BD))
        nearest = (candidate_BND @ F.normalize(CIRCLE, dim=-1).T).argmax(-1)
        return self.added[nearest]


# Eight images ten degrees apart: a query at 0 degrees ranks them a, b, c, ... h.
ANGLES = torch.arange(8) * torch.pi / 18
CIRCLE = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1) * torch.arange(1, 9)[:, None]
IMAGES = Features.of(IDS, CIRCLE)
TEXTS = Features.of(["Is red", "Is blue"], torch.eye(2))
BACKWARDS = [0.0, 1, 2, 3, 4, 5, 6, 7]


def dataset(*pairs: str, subset: list[str] | None = None) -> Dataset:
    """Return a gallery of all images, and a triplet for each pair "reference target"."""
    builder = DatasetBuilder()
    builder.add_gallery("dress", "val", IDS, source="dress.json")
    for number, pair in enumerate(pairs):
        row = TripletRow(f"t{number}", "dress", "val", pair[0], pair[1], ["is red"], subset)
        builder.add_triplet(row, where="here")
    return builder.build({})


def ranked(head: Head, data: Dataset, depth: int, **options: Any) -> Evaluation:
    options = {"ks": (1, 3), "protocol": "original", **options}
    query = cached_query(head, IMAGES, TEXTS)
    found = rerank.cached_rerank(head, IMAGES, TEXTS, depth)
    return evaluate(data, "val", IMAGES, query, rerank=found, **options)


@pytest.mark.parametrize(
    ("depth", "ranks"),
    [(0, [1, 3, 4, 8]), (3, [3, 1, 4, 8]), (4, [4, 2, 1, 8]), (99, [8, 6, 5, 1])],
)
def test_only_the_first_candidates_get_another_order(depth: int, ranks: list[int]) -> None:
    found = ranked(Reverse(BACKWARDS), dataset("aa", "ac", "ad", "ah"), depth)
    assert list(found.ranks.values()) == ranks
    assert found.recalls["dress"]["recall@3"] == sum(rank <= 3 for rank in ranks) / 4


def test_the_score_is_added_to_the_cosine() -> None:
    # Cosines with a: 1, 0.985, 0.940, 0.866. 0.05 lifts c above b, not above a.
    found = ranked(Reverse([0, 0, 0.05, 0, 0, 0, 0, 0]), dataset("aa", "ab", "ac", "ad"), 4)
    assert list(found.ranks.values()) == [1, 3, 2, 4]


def test_the_reference_stays_left_out_and_takes_no_place_among_the_first() -> None:
    data = dataset("ab", "ac", "ad")
    found = ranked(Reverse(BACKWARDS), data, 2, protocol="original-masked", top=8)
    assert list(found.ranks.values()) == [2, 1, 3]
    assert [image_id for image_id, _ in found.top["t0"]] == list("cbdefgh")


def test_the_best_images_come_in_the_new_order_with_their_cosines() -> None:
    found = ranked(Reverse(BACKWARDS), dataset("aa"), 3, top=4)
    cosines = [0.9396926, 0.9848078, 1.0, 0.8660254]
    assert [image_id for image_id, _ in found.top["t0"]] == list("cbad")
    assert [score for _, score in found.top["t0"]] == pytest.approx(cosines, abs=1e-6)


def test_a_subset_is_re_ranked_as_a_gallery_of_its_own() -> None:
    # By the cosine with a: b, c, g, h; of the whole gallery only the first two would be re-ranked
    data = dataset("ab", "ac", "ag", "ah", subset=list("abcgh"))
    found = ranked(Reverse(BACKWARDS), data, 2)
    assert list(found.subset_ranks.values()) == [2, 1, 3, 4]
    assert list(ranked(Reverse(BACKWARDS), data, 3).subset_ranks.values()) == [3, 2, 1, 4]
    assert list(ranked(Reverse(BACKWARDS), data, 200).subset_ranks.values()) == [4, 3, 2, 1]
    assert list(ranked(Reverse(BACKWARDS), data, 0).subset_ranks.values()) == [1, 2, 3, 4]
    assert found.recalls["dress"]["recall_subset@1"] == 1 / 4


def test_ties_count_against_us_and_a_masked_target_is_not_found() -> None:
    head, unit = Reverse([0.0] * 8), F.normalize(CIRCLE, dim=-1)
    batch = rerank.cached_rerank(head, IMAGES, TEXTS, 3)
    assert batch is not None
    twice = torch.cat([unit[:1], unit[:3]])
    rescore = batch([{"reference": "a", "text": "Is red"}], twice)
    ranks = rank_all_targets(unit[:1], twice, torch.tensor([[0]]), rescore=rescore)
    assert ranks.tolist() == [[2]]
    masked = torch.tensor([0])
    ranks = rank_all_targets(unit[:1], twice, torch.tensor([[0]]), masked, rescore=rescore)
    assert ranks.tolist() == [[NOT_FOUND]]


def test_many_pairs_are_judged_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    head, data = Reverse(BACKWARDS), dataset("aa", "bb", "cc", "dd", "ee")
    together = ranked(head, data, 4).ranks
    assert head.seen == [5]
    monkeypatch.setattr(rerank, "PAIRS", 8)
    assert ranked(head, data, 4).ranks == together
    assert head.seen[1:] == [2, 2, 1]


def test_a_head_that_re_ranks_nothing_and_a_depth_of_0_leave_the_cosines() -> None:
    plain = fusion.create(fusion.HeadConfig("sum", 2))
    assert rerank.cached_rerank(plain, IMAGES, TEXTS, 200) is None
    assert rerank.cached_rerank(Reverse(BACKWARDS), IMAGES, TEXTS, 0) is None


def test_dcnet_ranks_a_gallery_by_the_cosine_plus_the_correction() -> None:
    torch.manual_seed(0)
    head = fusion.create(fusion.HeadConfig("dcnet", 6)).eval()
    generator = torch.Generator().manual_seed(1)
    images = Features.of(IDS, torch.randn(8, 6, generator=generator))
    texts = Features.of(["Is red"], torch.randn(1, 6, generator=generator))
    triplets = [{"reference": i, "text": "Is red"} for i in "abc"]
    unit = F.normalize(images.values, dim=-1)
    with torch.inference_mode():
        query = cached_query(head, images, texts)(triplets)
        added = head.rerank(images.values[:3], texts.values.expand(3, 6), unit.expand(3, 8, 6))
        batch = rerank.cached_rerank(head, images, texts, 200)
        assert batch is not None
        _, rows = top_images(query, unit, 8, rescore=batch(triplets, unit))
    assert rows.tolist() == (query @ unit.T + added).argsort(dim=1, descending=True).tolist()
