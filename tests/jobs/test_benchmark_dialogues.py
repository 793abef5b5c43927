"""The benchmark of sessions of edits: its users, and what a turn becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.benchmarks import dialogues
from jobs.benchmarks.dialogues import Garments, Said
from raycd import bundle
from raycd.data.demo.garments import CATEGORIES, attributes, differences, random_garment
from raycd.errors import ConfigError
from raycd.search.query import History

COUNT = 400


@pytest.fixture(scope="module")
def gallery(tiny_bundle: Any, tmp_path_factory: pytest.TempPathFactory) -> Garments:
    """Garments whose features are random: what is found is luck."""
    tiny, rng = bundle.load(tiny_bundle.folder), np.random.default_rng(0)
    garments = [random_garment(rng, CATEGORIES[number % 2]) for number in range(COUNT)]
    table = bundle.gallery_table(
        [f"G{number}" for number in range(COUNT)],
        [[garment.category] for garment in garments],
        [None] * COUNT,
        rng.standard_normal((COUNT, tiny.encoder.dim), dtype=np.float32),
        tiny.encoder.fingerprint(),
        attributes=[attributes(garment) for garment in garments],
    )
    folder = tmp_path_factory.mktemp("garments") / "bundle"
    bundle.write(folder, tiny.encoder, tiny.head, tiny.head_config, table, tiny.config, {})
    return Garments(folder)


def test_a_dialogue_begins_with_an_image_that_differs_in_three_or_four_attributes(
    gallery: Garments,
) -> None:
    pairs = dialogues.drawn(gallery.garments, 50, seed=1)
    assert pairs == dialogues.drawn(gallery.garments, 50, seed=1)
    for start, target in pairs:
        one, other = gallery.garments[start], gallery.garments[target]
        assert len(differences(one, other)) in (3, 4)
        assert one.category == other.category


def test_a_turn_is_a_query_of_its_image_its_history_or_both() -> None:
    before = History(None, ("is red",))
    said, begun = Said("G1", "is blue", before), Said("G1", "is blue", None)
    assert dialogues.last_image(said) == {"image_id": "G1", "text": "is blue"}
    assert dialogues.texts(said) == {"text": "is blue", "history": before}
    assert dialogues.texts(begun) == {"image_id": "G1", "text": "is blue"}
    whole = {"image_id": "G1", "text": "is blue", "history": before}
    assert dialogues.texts_and_image(said) == whole


@pytest.mark.parametrize("way", dialogues.WAYS.values(), ids=list(dialogues.WAYS))
def test_what_was_found_stays_found_and_all_begin_alike(
    gallery: Garments, way: dialogues.Way
) -> None:
    pairs = dialogues.drawn(gallery.garments, 40, seed=0)
    found_TN = dialogues.held(gallery, pairs, way, looks=10)
    assert found_TN.shape == (dialogues.TURNS, 40)
    assert (np.diff(found_TN.astype(int), axis=0) >= 0).all()
    plain = dialogues.held(gallery, pairs, dialogues.last_image, looks=10)
    assert (found_TN[0] == plain[0]).all()


def test_a_gallery_of_hardly_any_pairs_is_refused() -> None:
    alike = random_garment(np.random.default_rng(0), CATEGORIES[0])
    with pytest.raises(ConfigError, match="too few garments"):
        dialogues.drawn(dict.fromkeys("abc", alike), 2, seed=0)


def test_a_gallery_of_others_is_refused(tiny_bundle: Any) -> None:
    folder: Path = tiny_bundle.folder
    with pytest.raises(ConfigError, match="not the demo's"):
        Garments(folder)
