"""Answers to test splits whose targets are secret, as the evaluation servers read them.

CIRR takes two files: of each query the best 50 images of the gallery, and the best 3 of its group;
neither has the reference. CIRCO takes one, of the best 50 images.

A server refuses a file that lacks a query. So one that cannot be asked, because its reference is
missing, is answered by the first images of the gallery, and counted.

Shapes: B queries, G gallery images, D feature size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from raycd.data.schema import Dataset, subset_of
from raycd.errors import ConfigError, DataError
from raycd.evaluate import QueryFunction, RerankFunction
from raycd.evaluate.ranking import subset_scores, top_images
from raycd.features import Features

TOP, TOP_OF_SUBSET = 50, 3


@dataclass(frozen=True)
class Ranked:
    """The answers to all queries of a split, by triplet id."""

    gallery: dict[str, list[str]] = field(default_factory=dict)
    """The best TOP images."""
    subsets: dict[str, list[str]] = field(default_factory=dict)
    """The members of the triplet's subset without the reference, best first."""
    unasked: list[str] = field(default_factory=list)
    """Triplets whose reference has no feature."""
    missing: list[str] = field(default_factory=list)
    """Gallery images that have no feature: they can be in no answer."""


@torch.inference_mode()
def rank(
    dataset: Dataset,
    split: str,
    images: Features,
    query: QueryFunction,
    *,
    mask_reference: bool,
    batch_size: int = 1024,
    device: torch.device | str = "cpu",
    rerank: RerankFunction | None = None,
) -> Ranked:
    """Rank the gallery for each query of a split; its targets are not looked at.

    Raises DataError where the split has no queries.
    """
    by_category: dict[str, list[dict[str, Any]]] = {}
    for row in dataset.queries(split):
        by_category.setdefault(row["category"], []).append(row)
    if not by_category:
        raise DataError(f"the split {split} has no queries", do="submit another split")
    ranked = Ranked()
    for category, rows in by_category.items():
        annotated = dataset.gallery_ids(category, split)
        known = images.among([*annotated, *(row["reference"] for row in rows)])
        ids = [image_id for image_id in annotated if image_id in known]
        ranked.missing.extend(image_id for image_id in annotated if image_id not in known)
        gallery_GD = F.normalize(images.take(ids, device).float(), dim=-1)
        positions = {image_id: position for position, image_id in enumerate(ids)}
        asked = [row for row in rows if row["reference"] in known]
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            query_BD = F.normalize(query(batch).to(gallery_GD), dim=-1)
            masked = torch.tensor([positions.get(row["reference"], -1) for row in batch])
            rescore = rerank(batch, gallery_GD) if rerank else None
            _, best_BK = top_images(
                *(query_BD, gallery_GD, TOP, masked if mask_reference else None),
                batch_size=batch_size,
                rescore=rescore,
            )
            subset_BS = _subsets(batch, positions)
            score_BS = subset_scores(query_BD, gallery_GD, subset_BS.to(query_BD.device), rescore)
            for row, best_K, scores in zip(batch, best_BK.tolist(), score_BS.tolist(), strict=True):
                ranked.gallery[row["triplet_id"]] = [ids[position] for position in best_K]
                ranked.subsets[row["triplet_id"]] = _ordered(subset_of(row), scores)
        for row in rows:
            if row["reference"] not in known:
                others = [i for i in annotated if not mask_reference or i != row["reference"]]
                ranked.unasked.append(row["triplet_id"])
                ranked.gallery[row["triplet_id"]] = others[:TOP]
                ranked.subsets[row["triplet_id"]] = subset_of(row)
    return ranked


def cirr(ranked: Ranked) -> dict[str, dict[str, Any]]:
    """Return CIRR's two files (release rc2) by name; triplet ids end with the pair's id."""
    pair = {triplet_id: triplet_id.rpartition("/")[2] for triplet_id in ranked.gallery}
    return {
        "recall_submission.json": {"version": "rc2", "metric": "recall"}
        | {pair[key]: best for key, best in ranked.gallery.items()},
        "recall_subset_submission.json": {"version": "rc2", "metric": "recall_subset"}
        | {pair[key]: best[:TOP_OF_SUBSET] for key, best in ranked.subsets.items()},
    }


def circo(ranked: Ranked) -> dict[str, dict[str, Any]]:
    """Return CIRCO's file by name: query id -> COCO's numbers of the best images."""
    answers = {
        key.rpartition("/")[2]: [int(image_id) for image_id in best]
        for key, best in ranked.gallery.items()
    }
    return {"circo_submission.json": answers}


FORMATS: Mapping[str, tuple[Callable[[Ranked], dict[str, dict[str, Any]]], bool]] = {
    "cirr": (cirr, True),
    "circo": (circo, False),
}
"""data.format -> what makes the files, and whether the reference is left out."""


def check_format(name: str) -> None:
    """Raise ConfigError for a data set that has no evaluation server."""
    if name not in FORMATS:
        raise ConfigError(
            "there is no evaluation server for this data set",
            got=f"data.format {name}",
            expected=f"one of: {', '.join(FORMATS)}",
        )


def _subsets(batch: Sequence[Mapping[str, Any]], positions: Mapping[str, int]) -> torch.Tensor:
    """Return the positions (B, S) of the members of the rows' subsets, -1 without a feature."""
    rows = [[positions.get(member, -1) for member in subset_of(row)] for row in batch]
    width = max(map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.int64)


def _ordered(members: Sequence[str], scores: Sequence[float]) -> list[str]:
    """Return the members, best first; scores may go on beyond them."""
    order = sorted(range(len(members)), key=lambda position: -scores[position])
    return [members[position] for position in order]
