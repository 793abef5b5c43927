"""Evaluation through a running service, query by query: what its users get.

Each query of val is a search by the reference's name and the text, in its category. Results that
the protocol does not search, such as images that were added live, are passed over, so more are
asked for until enough remain. Where triplets have subsets, each query is asked a second time among
its own alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from raycd import progress
from raycd.api import Limits, SearchResult
from raycd.client import Client
from raycd.client.request import Search
from raycd.config import Config, Protocol
from raycd.data.schema import Dataset, subset_of, targets_of
from raycd.errors import ConfigError
from raycd.evaluate import AVERAGE, MASKED, SUBSET_KS, Evaluation, average, gallery_ids
from raycd.evaluate.ranking import NOT_FOUND, mean_average_precision, recall
from raycd.progress import Bar

Decided = tuple[bool, float]  # whether an image was re-ranked, and the score by which it stands
Found = list[tuple[str, Decided, float]]
"""Images, best first, with their cosines: what was re-ranked stands above the others."""


def ask(
    client: Client, dataset: Dataset, config: Config, protocol: Protocol, *, top: int = 0
) -> Evaluation:
    """Ask a service all queries of val; return what `evaluate` returns.

    A rank is known as far as results were asked for: to the greatest of `evaluate.ks`,
    `evaluate.map_ks` and `top`. A query whose reference, or all of whose targets, the service does
    not have is not found. Where answers come without the re-ranking of the service's model, a
    warning says so. Raises ServiceError where the service refuses or does not answer.
    """
    settings = config.evaluate
    depth = max(*settings.ks, *settings.map_ks, top)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in dataset.queries("val", both_orders=settings.captions == "both_orders"):
        rows.setdefault(row["category"], []).append(row)
    evaluation, limits, late = Evaluation(recalls={}), client.info().limits, 0
    _check_subsets([row for queries in rows.values() for row in queries], limits.filters)
    with Bar("ask the service", total=sum(map(len, rows.values())), unit="queries") as bar:
        for category, queries in rows.items():
            wanted = gallery_ids(dataset.gallery_ids(category, "val"), queries, protocol)
            there = {item.image_id for item in client.iter_gallery(category=[category])}
            searched = there.intersection(wanted)
            service = _Category(
                *(client, category, there, searched, depth), limits, protocol in MASKED
            )
            ranks, in_subset = [], []
            has_subsets = all(query["subset"] for query in queries)
            for query in queries:
                right = set(targets_of(query)) & searched
                asked = query["reference"] in there and bool(right)
                best = service.search(query) if asked else []
                if has_subsets:
                    own = service.search_subset(query) if asked else []
                    in_subset.append(next(iter(_ranks(own, right, "")), NOT_FOUND))
                if not asked:
                    evaluation.missing_queries.setdefault(category, []).append(query["triplet_id"])
                evaluation.top[query["triplet_id"]] = [
                    (one, cosine) for one, _, cosine in best[:top]
                ]
                ranks.append(_ranks(best, right, query["reference"] if protocol in MASKED else ""))
                bar.advance()
            evaluation.gallery[category], evaluation.queries[category] = len(searched), len(queries)
            evaluation.missing_gallery[category] = [i for i in wanted if i not in there]
            _measure(evaluation, category, queries, ranks, config)
            if has_subsets:
                _measure_subsets(evaluation, category, queries, in_subset)
            late += service.late
    if late:
        progress.say(
            f"warning: the service gave {late:,} answers without re-ranking, for it had no time "
            "left (timeout_s): their ranks are by the cosine alone"
        )
    evaluation.recalls[AVERAGE] = average(evaluation.recalls.values())
    return evaluation


def _check_subsets(queries: Sequence[dict[str, Any]], most: int) -> None:
    """Raise ConfigError where a subset has more images than a search may name; 0: unknown."""
    sizes = (len({*subset_of(query)}) for query in queries)
    largest = max(sizes, default=0)
    needed = largest + 1  # and the category
    if most and needed > most:
        raise ConfigError(
            "the queries' subsets are larger than the service lets a search name",
            got=f"{largest} images and a category",
            expected=f"at most {most} (max_filters)",
            do=f"start the service with --max-filters {needed}",
        )


class _Category:
    """The searches of one category.

    Attributes:
        late: Answers without the re-ranking that the service's model does.
    """

    def __init__(
        self,
        client: Client,
        category: str,
        there: set[str],
        searched: set[str],
        depth: int,
        limits: Limits,
        exclude_reference: bool,
    ) -> None:
        self.client, self.category, self.there = client, category, there
        self.searched = searched
        self.depth, self.limits, self.exclude_reference = depth, limits, exclude_reference
        self.late = 0

    def search(self, query: dict[str, Any]) -> Found:
        """Return the best `depth` images of those that the protocol searches."""
        exclude: Search = {"exclude_reference": self.exclude_reference}
        return self._found(query, self.depth, exclude, self.searched)

    def search_subset(self, query: dict[str, Any]) -> Found:
        """Return the images of the query's subset, the same under every protocol, best first."""
        among = [i for i in subset_of(query) if i in self.there]
        return self._found(query, len(among), {"among": among}, self.there) if among else []

    def _found(
        self, query: dict[str, Any], depth: int, search: Search, searched: set[str]
    ) -> Found:
        search["image_id"], search["text"] = query["reference"], query["text"]
        search["category"] = [self.category]
        size, seen = min(self.limits.top_k, depth), 0
        found: Found = []
        while len(found) < depth:
            search["top_k"], search["offset"] = size, seen
            response = self.client.search(**search)
            if query["text"].strip() and response.model.rerank_depth and seen == 0:
                self.late += any(one.rerank_score is None for one in response.results[:1])
            found += [
                (one.image_id, _decided(one), one.score)
                for one in response.results
                if one.image_id in searched
            ]
            seen += size
            if len(response.results) < size:
                break
            size = self.limits.top_k
            if len(found) < depth and seen > self.limits.offset:
                raise ConfigError(
                    "the service shows too few results: most of them are not what the protocol "
                    "searches",
                    got=f"{len(found)} of the first {seen:,} are",
                    expected=f"{depth}",
                    do=f"start the service with a greater --max-offset than {self.limits.offset}",
                )
        return found[:depth]


def _decided(one: SearchResult) -> Decided:
    reranked = one.rerank_score is not None
    return reranked, one.score if one.rerank_score is None else one.rerank_score


def _ranks(found: Found, right: set[str], masked: str) -> list[int]:
    """Return the ranks of the right images that were found, best first, as in evaluation."""
    right = right - {masked}
    wrong = [by for image_id, by, _ in found if image_id not in right]
    own = sorted((by for image_id, by, _ in found if image_id in right), reverse=True)
    return [rank + sum(other >= by for other in wrong) for rank, by in enumerate(own, 1)]


def _measure(
    evaluation: Evaluation,
    category: str,
    queries: Sequence[dict[str, Any]],
    ranks: Sequence[Sequence[int]],
    config: Config,
) -> None:
    """Add the category's ranks and recall."""
    width = max(1, *(len(targets_of(query)) for query in queries))
    padded = [[*own, *[NOT_FOUND] * (width - len(own))] for own in ranks]
    ranks_QT = torch.tensor(padded, dtype=torch.int64)
    evaluation.missing_queries.setdefault(category, [])
    evaluation.ranks.update(
        (query["triplet_id"], own[0] if own else None)
        for query, own in zip(queries, ranks, strict=True)
    )
    relevant = torch.tensor([len(targets_of(query)) for query in queries])
    evaluation.recalls[category] = recall(ranks_QT[:, 0], config.evaluate.ks)
    evaluation.recalls[category] |= mean_average_precision(
        ranks_QT, relevant, config.evaluate.map_ks
    )


def _measure_subsets(
    evaluation: Evaluation, category: str, queries: Sequence[dict[str, Any]], ranks: Sequence[int]
) -> None:
    """Add the category's ranks and recall in subsets."""
    evaluation.subset_ranks.update(
        (query["triplet_id"], None if rank == NOT_FOUND else rank)
        for query, rank in zip(queries, ranks, strict=True)
    )
    in_subset = torch.tensor(ranks, dtype=torch.int64)
    evaluation.recalls[category] |= recall(in_subset, SUBSET_KS, name="recall_subset")
