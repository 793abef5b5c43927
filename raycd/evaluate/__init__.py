"""Recall of composed queries: arrays in, fractions out. docs/protocols.md explains the protocols.

| protocol          | gallery of a category                               | the query's reference |
| ----------------- | --------------------------------------------------- | --------------------- |
| `original`        | every image that the split's annotations list       | stays a candidate     |
| `original-masked` | the same                                            | is removed            |
| `val`             | only references and targets of the split's triplets | is removed            |

A query of several right targets is answered by any of them: its rank is that of the best one.

Shapes: Q queries, B of them at once, G gallery images, D feature size, S candidates of a subset
(CIRR), T targets of a query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from raycd.config import Protocol
from raycd.data import schema
from raycd.data.schema import Dataset, subset_of, targets_of
from raycd.errors import ConfigError, DataError
from raycd.evaluate.ranking import NOT_FOUND as NOT_FOUND
from raycd.evaluate.ranking import (
    Rescore,
    mean_average_precision,
    rank_all_targets,
    rank_in_subsets,
    recall,
    top_images,
)
from raycd.features import Features
from raycd.features.map_cache import NOTHING, Extras

AVERAGE = schema.AVERAGE
MASKED: tuple[Protocol, ...] = ("original-masked", "val")  # protocols that remove the reference
SUBSET_KS = (1, 2, 3)  # CIRR's recall_subset@k

Triplet = Mapping[str, Any]  # one row of schema.TRIPLET, and the "text" that is asked
QueryFunction = Callable[[Sequence[Triplet]], torch.Tensor]  # B triplets -> query features (B, D)
# B triplets and the gallery's unit features (G, D) -> what re-ranks them, see raycd.evaluate.rerank
RerankFunction = Callable[[Sequence[Triplet], torch.Tensor], Rescore]


def cached_query(
    head: Callable[..., torch.Tensor],
    images: Features,
    texts: Features,
    device: torch.device | str = "cpu",
    extras: Extras = NOTHING,
) -> QueryFunction:
    """Return queries from cached features: head(reference's feature, feature of the text).

    `extras` are the caches of what the head needs beside them.
    """

    def query(triplets: Sequence[Triplet]) -> torch.Tensor:
        references = [triplet["reference"] for triplet in triplets]
        captions = list(map(text_of, triplets))
        query_BD: torch.Tensor = head(
            images.take(references, device),
            texts.take(captions, device),
            **extras.of_images(references, device),
            **extras.of_texts(captions, device),
        )
        return query_BD

    return query


def composed_query(composed: Features, device: torch.device | str = "cpu") -> QueryFunction:
    """Return queries that the encoder itself composed, by `query_key`."""

    def query(triplets: Sequence[Triplet]) -> torch.Tensor:
        return F.normalize(composed.take(map(query_key, triplets), device), dim=-1)

    return query


def text_of(triplet: Triplet) -> str:
    """Return the text of a query, a row of `Dataset.queries`, which knows the data's wording."""
    text: str = triplet["text"]
    return text


def query_key(triplet: Triplet) -> str:
    """Return what a composed query is kept by."""
    return f"{triplet['reference']}\n{text_of(triplet)}"


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

    @property
    def ks(self) -> list[int]:
        """Return the ranks at which recall has to be measured."""
        return [self.k]

    def __str__(self) -> str:
        measure = f"recall@{self.k}"
        return measure if self.category == AVERAGE else f"{self.category}/{measure}"

    def of(self, recalls: Mapping[str, Mapping[str, float]]) -> float:
        """Return its value in `recalls`, a fraction."""
        return recalls[self.category][f"recall@{self.k}"]


@dataclass(frozen=True)
class Mean:
    """The mean of several measures of the average, by which epochs are compared (select_by)."""

    measures: tuple[str, ...] = ("recall@10",)

    @property
    def ks(self) -> list[int]:
        """Return the ranks at which recall has to be measured."""
        ks = [int(name.partition("@")[2]) for name in self.measures if name.startswith("recall@")]
        return ks or [Metric.k]

    def of(self, recalls: Mapping[str, Mapping[str, float]]) -> float:
        """Return its value in `recalls`, a fraction. Raises ConfigError for a missing measure."""
        found = recalls[AVERAGE]
        missing = [name for name in self.measures if name not in found]
        if missing:
            raise ConfigError(
                "select_by names what this data set does not have",
                got=", ".join(missing),
                expected=f"some of: {', '.join(found)}",
                do="name others; recall_subset needs triplets with subsets, as CIRR's",
            )
        return sum(found[name] for name in self.measures) / len(self.measures)


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
    """Ids of triplets whose reference or targets have no feature: counted as not found."""
    missing_gallery: dict[str, list[str]] = field(default_factory=dict)
    """Ids of gallery images that have no feature: not searched."""
    ranks: dict[str, int | None] = field(default_factory=dict)
    """Triplet id -> rank of its best target, from 1; None where it cannot be found."""
    subset_ranks: dict[str, int | None] = field(default_factory=dict)
    """Likewise in the triplet's subset, of triplets that have one."""
    top: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """Triplet id -> the best images and their cosines, as many as were asked for."""


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
    both_orders: bool = False,
    map_ks: Sequence[int] = (),
    top: int = 0,
    rerank: RerankFunction | None = None,
) -> Evaluation:
    """Return recall@k of every category that has triplets in `split`, and their mean.

    `images` lacks the images that are missing or broken. A query that needs one of them (its
    reference, or all of its targets) is reported and stays in the denominator as not found; a
    gallery image without a feature is reported and not searched. So a broken image never improves
    the recall of its own query. Where triplets have subsets (CIRR), recall_subset@1, 2, 3 ranks
    among them alone, without the reference. Raises DataError where nothing can be evaluated.

    Args:
        both_orders: Ask each query a second time with its captions in reverse (CoSMo); that one has
            the triplet's id and REVERSED.
        map_ks: Ranks of map@k, which counts all targets of a query (CIRCO).
        top: Number of best images to return of each query.
        rerank: Orders the first candidates of each query anew, and likewise those of its subset.
    """
    evaluation = Evaluation(recalls={})
    by_category = answerable(dataset.queries(split, both_orders=both_orders), split)
    for category, triplets in by_category.items():
        wanted = gallery_ids(dataset.gallery_ids(category, split), triplets, protocol)
        ranking = _Ranking(
            *(images, wanted, triplets, rerank, device),
            mask=protocol in MASKED,
            batch_size=batch_size,
            top=top,
        )
        evaluation.gallery[category] = len(ranking.positions)
        evaluation.queries[category] = len(triplets)
        evaluation.missing_gallery[category] = [i for i in wanted if i not in ranking.positions]
        ranks_QT, in_subset, best = ranking.run(triplets, query)
        evaluation.top.update(best)
        evaluation.missing_queries[category] = [
            t["triplet_id"] for t in triplets if not ranking.answerable(t)
        ]
        evaluation.ranks.update(_by_id(triplets, ranks_QT[:, 0]))
        evaluation.recalls[category] = recall(ranks_QT[:, 0], ks)
        if all(triplet["subset"] for triplet in triplets):
            evaluation.subset_ranks.update(_by_id(triplets, in_subset))
            evaluation.recalls[category] |= recall(in_subset, SUBSET_KS, name="recall_subset")
        relevant = torch.tensor([len(targets_of(triplet)) for triplet in triplets])
        evaluation.recalls[category] |= mean_average_precision(ranks_QT, relevant, map_ks)
    evaluation.recalls[AVERAGE] = average(evaluation.recalls.values())
    return evaluation


def _by_id(triplets: Sequence[Triplet], ranks_Q: torch.Tensor) -> dict[str, int | None]:
    found = (None if rank == NOT_FOUND else rank for rank in ranks_Q.tolist())
    return dict(zip((triplet["triplet_id"] for triplet in triplets), found, strict=True))


def average(recalls: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the unweighted mean of each measure that all categories have."""
    rows = list(recalls)
    return {
        name: sum(row[name] for row in rows) / len(rows)
        for name in rows[0]
        if all(name in row for row in rows)
    }


class _Ranking:
    """The ranking of one category's targets in its gallery."""

    def __init__(
        self,
        images: Features,
        wanted: Sequence[str],
        triplets: Sequence[Triplet],
        rerank: RerankFunction | None,
        device: torch.device | str,
        *,
        mask: bool,
        batch_size: int,
        top: int = 0,
    ) -> None:
        present = list(images.among(wanted))
        self.positions = {image_id: position for position, image_id in enumerate(present)}
        self.references = images.among(t["reference"] for t in triplets)
        # A subset is the same under every protocol: some of it may be beside the gallery
        members = images.among(image_id for t in triplets for image_id in t["subset"] or ())
        searched = [*present, *(image_id for image_id in members if image_id not in self.positions)]
        self.in_subsets = {image_id: position for position, image_id in enumerate(searched)}
        self.features_ND = F.normalize(images.take(searched, device).float(), dim=-1)
        self.gallery_GD = self.features_ND[: len(present)]
        self.mask, self.batch_size, self.top, self.rerank = mask, batch_size, top, rerank

    def answerable(self, triplet: Triplet) -> bool:
        """Return whether the reference and a target have features."""
        return triplet["reference"] in self.references and any(
            target in self.positions for target in targets_of(triplet)
        )

    def run(
        self, triplets: Sequence[Triplet], query: QueryFunction
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, list[tuple[str, float]]]]:
        """Return ranks (Q, T) in the gallery, (Q,) in the triplets' subsets, and the best images.

        Ranks are NOT_FOUND where a triplet is not answerable; it has no best images then.
        """
        width = max(len(targets_of(triplet)) for triplet in triplets)
        ranks = torch.full((len(triplets), width), NOT_FOUND)
        in_subset = torch.full((len(triplets),), NOT_FOUND)
        best: dict[str, list[tuple[str, float]]] = {}
        rows = [row for row, triplet in enumerate(triplets) if self.answerable(triplet)]
        for start in range(0, len(rows), self.batch_size):
            chosen = rows[start : start + self.batch_size]
            batch = [triplets[row] for row in chosen]
            query_BD = F.normalize(query(batch).to(self.gallery_GD), dim=-1)
            targets = _padded([targets_of(triplet) for triplet in batch], width, self.positions)
            masked = (
                self._positions(triplet["reference"] for triplet in batch) if self.mask else None
            )
            rescore = self.rerank(batch, self.features_ND) if self.rerank else None
            ranks[chosen] = rank_all_targets(
                *(query_BD, self.gallery_GD, targets, masked),
                batch_size=self.batch_size,
                rescore=rescore,
            )
            in_subset[chosen] = rank_in_subsets(
                query_BD, self.features_ND, targets, self._subsets(batch), rescore
            )
            if self.top:
                best |= self._best(batch, query_BD, masked, rescore)
        return ranks, in_subset, best

    def _best(
        self,
        batch: Sequence[Triplet],
        query_BD: torch.Tensor,
        masked: torch.Tensor | None,
        rescore: Rescore | None,
    ) -> dict[str, list[tuple[str, float]]]:
        ids = list(self.positions)
        scores_BK, rows_BK = top_images(
            *(query_BD, self.gallery_GD, self.top, masked),
            batch_size=self.batch_size,
            rescore=rescore,
        )
        return {
            triplet["triplet_id"]: [
                (ids[row], score) for row, score in zip(rows, scores, strict=True)
            ]
            for triplet, rows, scores in zip(
                batch, rows_BK.tolist(), scores_BK.tolist(), strict=True
            )
        }

    def _positions(self, image_ids: Iterable[str]) -> torch.Tensor:
        return torch.tensor(
            [self.positions.get(image_id, -1) for image_id in image_ids], dtype=torch.int64
        )

    def _subsets(self, batch: Sequence[Triplet]) -> torch.Tensor:
        """Return positions (B, S) of the members without the reference, padded with -1."""
        members = [subset_of(triplet) for triplet in batch]
        return _padded(members, max(1, max(map(len, members))), self.in_subsets)


def _padded(
    image_ids: Sequence[Sequence[str]], width: int, positions: Mapping[str, int]
) -> torch.Tensor:
    """Return the positions (B, width) of those that have one, padded with -1."""
    rows = [[positions[i] for i in own if i in positions] for own in image_ids]
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int64)


def gallery_ids(annotated: list[str], triplets: Sequence[Triplet], protocol: Protocol) -> list[str]:
    """Return the gallery of a protocol, in the order of the annotations."""
    if protocol != "val":
        return annotated
    used = {i for triplet in triplets for i in (triplet["reference"], *targets_of(triplet))}
    return [image_id for image_id in annotated if image_id in used]


def answerable(triplets: Iterable[Triplet], split: str) -> dict[str, list[Triplet]]:
    """Group triplets by category. Raises DataError where there are none, or targets are secret."""
    found: dict[str, list[Triplet]] = {}
    for triplet in triplets:
        found.setdefault(triplet["category"], []).append(triplet)
    if not found:
        raise DataError(
            f"the split {split} has no triplets, so nothing can be evaluated",
            do="evaluate another split",
        )
    every = [triplet for of_category in found.values() for triplet in of_category]
    secret = [triplet["triplet_id"] for triplet in every if triplet["target"] is None]
    if secret:
        raise DataError(
            f"the split {split} keeps its targets secret, so recall cannot be measured",
            got=f"{len(secret)} triplets without a target, such as {secret[0]}",
            do="evaluate another split",
        )
    return found
