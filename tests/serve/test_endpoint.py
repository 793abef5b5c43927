"""Evaluation through the running service gives the numbers of evaluation offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from raycd import bundle
from raycd.client import Client
from raycd.config import Config
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.schema import Dataset
from raycd.errors import ConfigError
from raycd.evaluate import cached_query, evaluate
from raycd.evaluate.rerank import cached_rerank
from raycd.features import Features
from raycd.runtime.evaluate import endpoint
from raycd.search import reranking

# Reference, targets and captions, by category: even images are shirts, odd ones dresses
TRIPLETS = (
    ("shirt", "image-0", ["image-4"], ["is blue", "no belt."]),
    ("shirt", "image-2", ["image-10", "image-6"], ["has long sleeves", "is red"]),
    ("shirt", "image-4", ["image-4"], ["is the same", "again"]),  # removed where masked
    ("shirt", "image-6", ["gone"], ["is gone", "away"]),
    ("dress", "image-1", ["image-3"], ["is blue", "no belt."]),
    ("dress", "image-5", ["image-11", "gone", "image-7"], ["is shorter", "is white"]),
    ("dress", "lost", ["image-3"], ["is found", "again"]),
)
SUBSET = ("image-4", "image-0", "image-6", "image-10")


def test_subsets_that_are_larger_than_a_search_may_name_are_refused_before_any_is_asked() -> None:
    query = {"reference": "a", "subset": ["a", *"bcdefg"]}
    endpoint._check_subsets([query, query | {"subset": None}], 7)
    endpoint._check_subsets([query], 0)
    with pytest.raises(ConfigError, match="start the service with --max-filters 7"):
        endpoint._check_subsets([query], 6)


class FarBehind:
    """A client of a service whose results the protocol mostly does not search."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def search(self, **search: Any) -> Any:
        self.asked.append((search["offset"], search["top_k"]))
        result = SimpleNamespace(image_id="other", score=0.5, rerank_score=None)
        model = SimpleNamespace(rerank_depth=0)
        return SimpleNamespace(results=[result] * search["top_k"], model=model)


def test_results_that_lie_beyond_what_a_service_shows_end_with_the_setting_to_change() -> None:
    client, limits = FarBehind(), SimpleNamespace(top_k=200, offset=1000)
    own = endpoint._Category(
        *(cast(Any, client), "dress", {"a"}, {"a"}, 50, cast(Any, limits)), exclude_reference=False
    )
    with pytest.raises(ConfigError, match="greater --max-offset than 1000"):
        own.search({"reference": "a", "text": "is red"})
    assert client.asked == [(0, 50), *((50 + 200 * page, 200) for page in range(5))]


@pytest.fixture(scope="module")
def dataset(tiny_bundle: Any) -> Dataset:
    """Triplets over the bundle's images, with two that the service does not have; it has three
    that the data set does not name. Those of shirts have subsets.
    """
    builder = DatasetBuilder()
    known = [image_id for image_id in tiny_bundle.image_ids if image_id not in ("image-8",)]
    for category, own in (("shirt", known[::2]), ("dress", known[1::2])):
        members = [i for i in known if (int(i[6:]) % 2 == 0) == (category == "shirt")]
        builder.add_gallery(category, "val", [*members, "gone", "lost"], source=str(own))
    for number, (category, reference, targets, captions) in enumerate(TRIPLETS):
        row = TripletRow(
            f"{category}/{number}",
            category,
            "val",
            reference,
            targets[0],
            captions,
            subset=[*SUBSET, "gone"] if category == "shirt" else None,
            further_targets=targets[1:] or None,
        )
        builder.add_triplet(row, where="here")
    return builder.build({})


@pytest.fixture(scope="module")
def features(tiny_bundle: Any, dataset: Dataset) -> tuple[Features, Features, Any]:
    return features_of(tiny_bundle.folder, dataset)


def features_of(folder: Path, dataset: Dataset) -> tuple[Features, Features, Any]:
    """Return features of a bundle's images and of the texts, and its head."""
    loaded = bundle.load(folder)
    table = bundle.read_gallery(folder)
    vectors = torch.from_numpy(bundle.gallery_features(table).copy())
    texts = [row["text"] for row in dataset.queries("val", both_orders=True)]
    with torch.inference_mode():
        encoded = loaded.encoder.encode_tokens(loaded.encoder.tokenize(texts))
    distinct = {text: row for row, text in enumerate(texts)}
    return (
        Features.of(table["image_id"].to_pylist(), vectors),
        Features.of(list(distinct), encoded[list(distinct.values())]),
        loaded.head.eval(),
    )


@pytest.fixture(scope="module")
def client(service_url: str) -> Iterator[Client]:
    with Client(service_url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("captions", ["joined", "both_orders"])
@pytest.mark.parametrize("protocol", ["original", "original-masked", "val"])
def test_recalls_through_the_service_are_those_offline(
    client: Client, dataset: Dataset, features: Any, protocol: Any, captions: str
) -> None:
    ks = {"ks": [1, 2, 3], "map_ks": [1, 5], "captions": captions}
    config = Config.model_validate({"evaluate": ks})
    images, texts, head = features
    offline = evaluate(
        dataset,
        "val",
        images,
        cached_query(head, images, texts),
        protocol=protocol,
        ks=(1, 2, 3),
        map_ks=(1, 5),
        both_orders=captions == "both_orders",
        top=50,
    )
    online = endpoint.ask(client, dataset, config, protocol, top=50)
    assert online.recalls == offline.recalls
    assert online.ranks == offline.ranks
    assert online.subset_ranks == offline.subset_ranks
    assert (online.queries, online.gallery) == (offline.queries, offline.gallery)
    assert online.missing_queries == offline.missing_queries
    assert online.missing_gallery == offline.missing_gallery
    assert 0 < offline.recalls["average"]["recall@3"] < 1
    for triplet_id, best in offline.top.items():
        found = online.top[triplet_id]
        assert [image_id for image_id, _ in found] == [image_id for image_id, _ in best]
        assert [s for _, s in found] == pytest.approx([s for _, s in best], abs=1e-5)


def test_a_head_that_re_ranks_gives_the_same_ranks_in_subsets_and_galleries(
    start_replica: Callable[..., str],
    service_args: Any,
    bundle_with_head: Callable[[str], Path],
    dataset: Dataset,
) -> None:
    folder = bundle_with_head("dcnet")
    images, texts, head = features_of(folder, dataset)
    query = cached_query(head, images, texts)
    config = Config.model_validate({"evaluate": {"ks": [1, 2, 3]}})
    reranked, by_cosine = (
        evaluate(dataset, "val", images, query, ks=(1, 2, 3), rerank=rerank, top=3)
        for rerank in (cached_rerank(head, images, texts, 200), None)
    )
    args = service_args.model_copy(update={"bundle": str(folder)})
    with Client(start_replica(args, "subsets"), timeout=60) as client:
        online = endpoint.ask(client, dataset, config, "original", top=3)
    assert online.subset_ranks == reranked.subset_ranks != by_cosine.subset_ranks
    for triplet_id, best in reranked.top.items():  # in the order of re-ranking, with cosines
        assert dict(online.top[triplet_id]) == pytest.approx(dict(best), abs=1e-5)
    assert online.ranks == {
        name: rank if rank is not None and rank <= 3 else online.ranks[name]
        for name, rank in reranked.ranks.items()
    }
    assert online.recalls == reranked.recalls
    assert "recall_subset@1" in online.recalls["shirt"].keys() - online.recalls["dress"].keys()


def test_answers_that_came_without_re_ranking_are_told(
    start_replica: Callable[..., str],
    service_args: Any,
    bundle_with_head: Callable[[str], Path],
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = service_args.model_copy(update={"bundle": str(bundle_with_head("dcnet"))})
    config = Config.model_validate({"evaluate": {"ks": [1]}})
    with Client(start_replica(args, "late"), timeout=60) as client:
        endpoint.ask(client, dataset, config, "original")
        assert "re-ranking" not in capsys.readouterr().err
        monkeypatch.setattr(reranking, "_SPARE", 1e9)  # as if it took a second for each image
        endpoint.ask(client, dataset, config, "original")
    # Five queries can be asked; the three of shirts among their subsets, too
    assert "warning: the service gave 8 answers without re-ranking" in capsys.readouterr().err


def test_results_beyond_a_page_are_asked_for(
    client: Client, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that gives two results at a time gives the same in the end."""
    config = Config.model_validate({"evaluate": {"ks": [1, 4]}})
    whole = endpoint.ask(client, dataset, config, "val", top=5)
    info = client.info()
    limits = info.limits.model_copy(update={"top_k": 2})
    monkeypatch.setattr(client, "info", lambda: info.model_copy(update={"limits": limits}))
    assert endpoint.ask(client, dataset, config, "val", top=5) == whole
