"""Queries to heads that need maps and tokens: given images and named ones, alone and in batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycd import bundle
from raycd.errors import DataError, WeightsError
from raycd.features.map_cache import CacheWriter, Extras, MapCache, read
from raycd.gallery.static import Gallery
from raycd.gallery.view import View
from raycd.model import fusion, maps
from raycd.model.embed_maps import half
from raycd.search.query import History, Query, Reference, Result
from raycd.search.searcher import Searcher

SIZE = 1  # the side that maps are pooled to


@dataclass(frozen=True)
class Served:
    """The tiny bundle's gallery under another head."""

    folder: Path
    caches: dict[str, MapCache]
    images: list[Any]

    def searcher(self) -> Searcher:
        return Searcher(bundle.load(self.folder), threads=1, text_cache=10)


@torch.inference_mode()
def served(tiny_bundle: Any, folder: Path, name: str, *, with_maps: bool = True) -> Served:
    """Write a bundle with a head of random weights and the maps of its gallery."""
    tiny = bundle.load(tiny_bundle.folder)
    pixels = torch.stack([tiny.encoder.preprocess(image) for image in tiny_bundle.images])
    needs = fusion.head_class(name).needs
    _, found = maps.encode_images(tiny.encoder, pixels, needs, SIZE)
    caches = {}
    for need, values in found.items():
        writer = CacheWriter(folder / need, need, values.shape[1:], shard_bytes=3000)
        for image_id, value in zip(tiny_bundle.image_ids, half(values, need), strict=True):
            writer.add(image_id, value)
        writer.close()
        caches[need] = read(folder / need)
    torch.manual_seed(0)
    shapes = maps.shapes(tiny.encoder, needs, SIZE)
    config = fusion.HeadConfig(name, tiny.encoder.dim, extra=shapes)
    bundle.write(
        folder / "bundle",
        tiny.encoder,
        fusion.create(config).eval(),
        config,
        bundle.read_gallery(tiny_bundle.folder),
        tiny.config,
        {},
        example_texts=["is blue"],
        extras=Extras(caches) if with_maps else Extras(),
    )
    return Served(folder / "bundle", caches, tiny_bundle.images)


@pytest.fixture(scope="module", params=["hffca", "val"])
def known(
    request: pytest.FixtureRequest, tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory
) -> Served:
    return served(tiny_bundle, tmp_path_factory.mktemp("served"), request.param)


@pytest.fixture(scope="module")
def searcher(known: Served) -> Searcher:
    return known.searcher()


def scores(results: list[Result]) -> dict[str, float]:
    return {result.image_id: result.score for result in results}


@torch.inference_mode()
def test_a_query_is_the_heads_of_features_maps_and_tokens(known: Served) -> None:
    searcher = known.searcher()
    loaded = searcher.bundle
    pixels = loaded.encoder.preprocess(known.images[2])[None]
    image_BD, extra = maps.encode_images(loaded.encoder, pixels, loaded.head.needs, SIZE)
    text_BD, tokens = maps.encode_tokens(loaded.encoder, loaded.encoder.tokenize(["is blue"]))
    if "tokens" in loaded.head.needs:
        extra |= tokens
    expected = loaded.head(image_BD, text_BD, **extra)
    prepared = searcher.prepare(Query(known.images[2], "is blue"))
    found = torch.from_numpy(searcher.encode([prepared]).query_BD)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # maps are float16


def test_an_image_of_the_gallery_is_as_if_it_were_sent(known: Served, searcher: Searcher) -> None:
    sent = Query(known.images[5], "is blue", top_k=12)
    named = Query(image_id="image-5", text="is blue", top_k=12)
    one, other = (scores(searcher.search([query])[0]) for query in (sent, named))
    assert one == pytest.approx(other, abs=1e-4)


def test_a_batch_of_all_sorts_is_answered_as_each_alone(known: Served, searcher: Searcher) -> None:
    queries = [
        Query(text="a dress"),
        Query(known.images[0], "is much darker and has longer sleeves"),
        Query(image_id="image-3", text="is red", negative_text="has stripes"),
        Query(image_id="image-4"),
        Query(known.images[7]),
        Query(known.images[1], "is red"),
        Query(
            text="is red",
            images=[Reference(known.images[2]), Reference(image_id="image-9", weight=2.0)],
        ),
        Query(text="is red", images=[Reference(image_id="image-9", weight=-1.0)]),
    ]
    together = searcher.search(queries)
    for query, found in zip(queries, together, strict=True):
        [alone] = searcher.search([query])
        assert scores(found) == pytest.approx(scores(alone), abs=1e-4)
        again = known.searcher().search([query])[0]
        assert scores(found) == pytest.approx(scores(again), abs=1e-4)


def test_the_maps_of_the_gallery_are_verified_parts_of_the_bundle(known: Served) -> None:
    manifest = bundle.verify(known.folder)
    named = {name for name in manifest.files if name.startswith("maps/")}
    on_disk = {
        path.relative_to(known.folder).as_posix()
        for path in (known.folder / "maps").rglob("*")
        if path.is_file()
    }
    assert named == on_disk
    loaded = bundle.load(known.folder).extras
    for need, cache in known.caches.items():
        keys = list(cache.slots)
        assert torch.equal(loaded.caches[need].take(keys)[need], cache.take(keys)[need])


def test_a_damaged_map_is_a_damaged_bundle(tiny_bundle: Any, tmp_path: Path) -> None:
    made = served(tiny_bundle, tmp_path, "cosmo")
    shard = made.folder / "maps" / "map" / "map-00000.npy"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(WeightsError, match=r"map-00000\.npy is not the file"):
        bundle.load(made.folder)


def test_an_image_without_maps_can_be_sent_but_not_named_with_a_text(
    tiny_bundle: Any, tmp_path: Path
) -> None:
    searcher = served(tiny_bundle, tmp_path, "cosmo", with_maps=False).searcher()
    assert searcher.search([Query(image_id="image-1")])[0]
    assert searcher.search([Query(tiny_bundle.images[1], "is blue")])[0]
    with pytest.raises(DataError, match=r"cosmo needs more(.|\n)*'image-1'(.|\n)*send the image"):
        searcher.search([Query(image_id="image-1", text="is blue")])


def test_a_history_of_an_image_is_refused_as_it_has_no_maps(
    known: Served, searcher: Searcher
) -> None:
    image_D = searcher.own.features(np.array([1]))[0]
    goes_on = History(image_D, ("is red",))
    with pytest.raises(DataError, match=r"needs more(.|\n)*leave the reference out"):
        searcher.search([Query(image_id="image-2", text="is blue", history=goes_on)])
    said = History(None, ("is red",))
    assert searcher.search([Query(image_id="image-2", text="is blue", history=said)])[0]


def test_an_image_that_was_replaced_by_another_has_no_maps(
    tiny_bundle: Any, known: Served, searcher: Searcher
) -> None:
    own = bundle.load(tiny_bundle.folder)
    features = bundle.gallery_features(bundle.read_gallery(tiny_bundle.folder)).copy()
    features[5] = features[6] + 0.5
    index = bundle.build_index(own.encoder, own.head, features, own.config, ())
    replaced = View.of(index, Gallery(own.gallery), version=1)
    searcher.prepare(Query(image_id="image-4", text="is blue"), replaced)
    with pytest.raises(DataError, match="not replaced since"):
        searcher.prepare(Query(image_id="image-5", text="is blue"), replaced)
    assert np.isfinite(
        searcher.encode([searcher.prepare(Query(image_id="image-5"))]).query_BD
    ).all()
