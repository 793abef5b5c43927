"""Recall of composed queries: arrays in, fractions out. docs/protocols.md explains the protocols.

| protocol          | gallery of a category                               | the query's reference |
| ----------------- | --------------------------------------------------- | --------------------- |
| `original`        | every image that the split's annotations list       | stays a candidate     |
| `original-masked` | the same                                            | is removed            |
| `val`             | only references and targets of the split's triplets | is removed            |

Shapes: Q queries, B of them at once, G gallery images, D feature size, S candidates of a subset
(CIRR).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from raycd.config import Protocol
from raycd.data import schema
from raycd.data.captions import evaluation_text
from raycd.data.schema import Dataset
from raycd.errors import ConfigError, DataError
from raycd.features import Features

AVERAGE = schema.AVERAGE
# The rank of a target that cannot be found, greater than every k
NOT_FOUND = torch.iinfo(torch.int64).max
MASKED: tuple[Protocol, ...] = ("original-masked", "val")  # protocols that remove the reference
SUBSET_KS = (1, 2, 3)  # CIRR's recall_subset@k

Triplet = Mapping[str, Any]  # one row of schema.TRIPLET
QueryFunction = Callable[[Sequence[Triplet]], torch.Tensor]  # B triplets -> query features (B, D)


def cached_query(
    head: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    images: Features,
    texts: Features,
    device: torch.device | str = "cpu",
) -> QueryFunction:
    """Return queries from cached features: head(reference's feature, feature of the text)."""

    def query(triplets: Sequence[Triplet]) -> torch.Tensor:
        image_BD = images.take((triplet["reference"] for triplet in triplets), device)
        text_BD = texts.take((evaluation_text(triplet["captions"]) for triplet in triplets), device)
        query_BD: torch.Tensor = head(image_BD, text_BD)
        return query_BD

    return query


def composed_query(composed: Features, device: torch.device | str = "cpu") -> QueryFunction:
    """Return queries that the encoder itself composed, by `query_key`."""

    def query(triplets: Sequence[Triplet]) -> torch.Tensor:
        return F.normalize(composed.take(map(query_key, triplets), device), dim=-1)

    return query


def query_text(triplet: Triplet) -> str:
    """Return the text that is asked."""
    return evaluation_text(triplet["captions"])


def query_key(triplet: Triplet) -> str:
    """Return what a composed query is kept by."""
    return f"{triplet['reference']}\n{query_text(triplet)}"


@dataclass(frozen=True)
class Metric:
    """One number of an evaluation: "recall@10" of the average, "dress/recall@10" of a category."""

    category: str = AVERAGE
    k: int = 10

    @classmethod
    def parse(cls, name: str, categories: Sequence[str], ks: Sequence[int]) -> Metric:
        """Return the metric of that name. Raises ConfigError where there is none."""
        category, slash, measure = name.rpartition("/")
        known = {f"recall@{k}": k for k in sorted({cls.k, *ks})}
        if measure not in known or (slash and category not in (AVERAGE, *categories)):
            raise ConfigError(
                "there is no such metric",
                got=name,
                expected=f"{' or '.join(known)}, alone or after one of: "
                + ", ".join(f"{c}/" for c in categories),
                do="correct the metric, or measure other ranks by --evaluate.ks",
            )
        return cls(category or AVERAGE, known[measure])

    def __str__(self) -> str:
        measure = f"recall@{self.k}"
        return measure if self.category == AVERAGE else f"{self.category}/{measure}"

    def of(self, recalls: Mapping[str, Mapping[str, float]]) -> float:
        """Return its value in `recalls`, a fraction."""
        return recalls[self.category][f"recall@{self.k}"]


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`, each part by category."""

    recalls: dict[str, dict[str, float]]
    """{"recall@10": fraction, ...}; also for "average", the unweighted mean of the categories."""
    gallery: dict[str, int] = field(default_factory=dict)
    """Number of images searched."""
    queries: dict[str, int] = field(default_factory=dict)
    """Number of queries, those that could not be answered included."""
    missing_queries: dict[str, list[str]] = field(default_factory=dict)
    """Ids of triplets whose reference or target has no feature: counted as not found."""
    missing_gallery: dict[str, list[str]] = field(default_factory=dict)
    """Ids of gallery images that have no feature: not searched."""
    ranks: dict[str, int | None] = field(default_factory=dict)
    """Triplet id -> rank of its target, from 1; None where it cannot be found."""


@torch.inference_mode()
def evaluate(
    dataset: Dataset,
    split: str,
    images: Features,
    query: QueryFunction,
    *,
    protocol: Protocol = "original",
    ks: Sequence[int] = (10, 50),
    batch_size: int = 1024,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Return recall@k of every category that has triplets in `split`, and their mean.

    `images` lacks the images that are missing or broken. A query that needs one of them (its
    reference or its target) is reported and stays in the denominator as not found; a gallery image
    without a feature is reported and not searched. So a broken image never improves the recall of
    its own query. Where triplets have subsets (CIRR), recall_subset@1, 2, 3 ranks among them,
    without the reference. Raises DataError where nothing can be evaluated.
    """
    by_category: dict[str, list[Triplet]] = {}
    for triplet in dataset.triplets_of(split).to_pylist():
        by_category.setdefault(triplet["category"], []).append(triplet)
    _check(by_category, split)
    evaluation = Evaluation(recalls={})
    for category, triplets in by_category.items():
        wanted = _gallery_ids(dataset.gallery_ids(category, split), triplets, protocol)
        present = [image_id for image_id in wanted if image_id in images]
        evaluation.gallery[category] = len(present)
        evaluation.queries[category] = len(triplets)
        evaluation.missing_gallery[category] = [
            image_id for image_id in wanted if image_id not in images
        ]
        positions = {image_id: position for position, image_id in enumerate(present)}
        gallery_GD = F.normalize(images.take(present, device).float(), dim=-1)
        ranking = _Ranking(
            positions, gallery_GD, images, mask=protocol in MASKED, batch_size=batch_size
        )
        ranks, in_subset = ranking.run(triplets, query)
        ids = [triplet["triplet_id"] for triplet in triplets]
        evaluation.missing_queries[category] = [
            t["triplet_id"] for t in triplets if not ranking.answerable(t)
        ]
        found = (None if rank == NOT_FOUND else rank for rank in ranks.tolist())
        evaluation.ranks.update(zip(ids, found, strict=True))
        evaluation.recalls[category] = recall(ranks, ks)
        if all(triplet["subset"] for triplet in triplets):
            evaluation.recalls[category] |= recall(in_subset, SUBSET_KS, name="recall_subset")
    evaluation.recalls[AVERAGE] = average(evaluation.recalls.values())
    return evaluation


def recall(ranks: torch.Tensor, ks: Sequence[int], *, name: str = "recall") -> dict[str, float]:
    """Return {"recall@k": share of ranks <= k, from 0 to 1} of ranks (Q,) from 1, Q > 0."""
    return {f"{name}@{k}": int((ranks <= k).sum()) / len(ranks) for k in ks}


def average(recalls: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the unweighted mean of each measure that all categories have."""
    rows = list(recalls)
    return {
        name: sum(row[name] for row in rows) / len(rows)
        for name in rows[0]
        if all(name in row for row in rows)
    }


def rank_targets(
    query_QD: torch.Tensor,
    gallery_GD: torch.Tensor,
    targets: torch.Tensor,
    masked: torch.Tensor | None = None,
    *,
    batch_size: int = 1024,
) -> torch.Tensor:
    """Return the ranks (Q,) of the targets by inner product, from 1.

    A rank is 1 + the number of OTHER images whose score is not below the target's. So exact ties
    count against us, and so does a score that is NaN. `targets` (Q,) are positions in the gallery,
    -1 where the target is absent: its rank is NOT_FOUND. `masked` (Q,) are positions to leave out,
    -1 for none; a masked target is not found.
    """
    ranks = torch.empty(len(query_QD), dtype=torch.int64)
    for start in range(0, len(query_QD), batch_size):
        batch = slice(start, start + batch_size)
        score_BG = query_QD[batch] @ gallery_GD.T
        target_B = targets[batch].to(score_BG.device)
        target_score_B1 = score_BG.gather(1, target_B[:, None].clamp(min=0))
        lost_B = target_B < 0
        if masked is not None:
            masked_B = masked[batch].to(score_BG.device)
            _leave_out(score_BG, masked_B)
            lost_B |= target_B == masked_B
        # Negated "<" rather than ">=", which is false for NaN; the target itself makes the rank 1
        rank_B = (~(score_BG < target_score_B1)).sum(1)
        ranks[batch] = torch.where(lost_B, NOT_FOUND, rank_B).cpu()
    return ranks


def rank_in_subsets(
    query_QD: torch.Tensor, gallery_GD: torch.Tensor, targets: torch.Tensor, subsets: torch.Tensor
) -> torch.Tensor:
    """Return the ranks (Q,) of the targets among `subsets` (Q, S), ties as in `rank_targets`.

    Subsets are positions in the gallery padded with -1. A target that is -1 or not in its subset is
    NOT_FOUND.
    """
    subsets, targets = subsets.to(query_QD.device), targets.to(query_QD.device)
    score_QS = torch.einsum("qd,qsd->qs", query_QD, gallery_GD[subsets.clamp(min=0)])
    is_target_QS = (subsets == targets[:, None]) & (subsets >= 0)
    target_Q1 = torch.where(is_target_QS, score_QS, -torch.inf).amax(1, keepdim=True)
    rank_Q = (~(score_QS < target_Q1) & (subsets >= 0)).sum(1)
    return torch.where(is_target_QS.any(1), rank_Q, NOT_FOUND).cpu()


def top_images(
    query_QD: torch.Tensor,
    gallery_GD: torch.Tensor,
    k: int,
    masked: torch.Tensor | None = None,
    *,
    batch_size: int = 1024,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best images of each query by inner product: scores (Q, k) and positions (Q, k).

    `masked` is that of `rank_targets`. k is cut to the size of the gallery (less one where images
    are masked).
    """
    k = min(k, len(gallery_GD) - (masked is not None))
    scores, positions = [], []
    for start in range(0, len(query_QD), batch_size):
        score_BG = query_QD[start : start + batch_size] @ gallery_GD.T
        if masked is not None:
            _leave_out(score_BG, masked[start : start + batch_size].to(score_BG.device))
        best = score_BG.topk(k, dim=1)
        scores.append(best.values.cpu())
        positions.append(best.indices.cpu())
    return torch.cat(scores), torch.cat(positions)


def _leave_out(score_BG: torch.Tensor, masked_B: torch.Tensor) -> None:
    """Set the score of each query's masked image (none where -1) to minus infinity, in place."""
    rows = (masked_B >= 0).nonzero()[:, 0]
    score_BG[rows, masked_B[rows]] = -torch.inf


class _Ranking:
    """The ranking of one category's targets in its gallery."""

    def __init__(
        self,
        positions: Mapping[str, int],
        gallery_GD: torch.Tensor,
        images: Features,
        *,
        mask: bool,
        batch_size: int,
    ) -> None:
        self.positions, self.gallery_GD, self.images = positions, gallery_GD, images
        self.mask, self.batch_size = mask, batch_size

    def answerable(self, triplet: Triplet) -> bool:
        """Return whether the reference and the target have features."""
        return triplet["reference"] in self.images and triplet["target"] in self.positions

    def run(
        self, triplets: Sequence[Triplet], query: QueryFunction
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ranks (Q,) in the gallery and in the triplets' subsets.

        They are NOT_FOUND where a triplet is not answerable.
        """
        ranks = torch.full((len(triplets),), NOT_FOUND)
        in_subset = torch.full((len(triplets),), NOT_FOUND)
        rows = [row for row, triplet in enumerate(triplets) if self.answerable(triplet)]
        for start in range(0, len(rows), self.batch_size):
            chosen = rows[start : start + self.batch_size]
            batch = [triplets[row] for row in chosen]
            query_BD = F.normalize(query(batch).to(self.gallery_GD), dim=-1)
            targets = self._positions(triplet["target"] for triplet in batch)
            masked = (
                self._positions(triplet["reference"] for triplet in batch) if self.mask else None
            )
            ranks[chosen] = rank_targets(
                query_BD, self.gallery_GD, targets, masked, batch_size=self.batch_size
            )
            in_subset[chosen] = rank_in_subsets(
                query_BD, self.gallery_GD, targets, self._subsets(batch)
            )
        return ranks, in_subset

    def _positions(self, image_ids: Iterable[str]) -> torch.Tensor:
        return torch.tensor(
            [self.positions.get(image_id, -1) for image_id in image_ids], dtype=torch.int64
        )

    def _subsets(self, batch: Sequence[Triplet]) -> torch.Tensor:
        """Return positions (B, S) of the searched members without the reference, padded with -1."""
        members = [
            [
                self.positions[m]
                for m in triplet["subset"] or ()
                if m in self.positions and m != triplet["reference"]
            ]
            for triplet in batch
        ]
        width = max(1, max(map(len, members)))
        return torch.tensor([row + [-1] * (width - len(row)) for row in members], dtype=torch.int64)


def _gallery_ids(
    annotated: list[str], triplets: Sequence[Triplet], protocol: Protocol
) -> list[str]:
    """Return the gallery of a protocol, in the order of the annotations."""
    if protocol != "val":
        return annotated
    used = {triplet[side] for triplet in triplets for side in ("reference", "target")}
    return [image_id for image_id in annotated if image_id in used]


def _check(by_category: Mapping[str, Sequence[Triplet]], split: str) -> None:
    if not by_category:
        raise DataError(
            f"the split {split} has no triplets, so nothing can be evaluated",
            do="evaluate another split",
        )
    secret = [
        t["triplet_id"]
        for triplets in by_category.values()
        for t in triplets
        if t["target"] is None
    ]
    if secret:
        raise DataError(
            f"the split {split} keeps its targets secret, so recall cannot be measured",
            got=f"{len(secret)} triplets without a target, such as {secret[0]}",
            do="evaluate another split",
        )
