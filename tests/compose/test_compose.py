"""Triplets composed from attributes: the pairs drawn, their wording, what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raycd import compose
from raycd.compose import pairs as drawing
from raycd.compose.wording import Change
from raycd.config import ComposeConfig, MineConfig
from raycd.data.schema import TRIPLET
from raycd.errors import ConfigError, DataError
from raycd.mine import Pool, find_neighbours

Attributes = Sequence[Mapping[str, str]]


def near(
    features_ND: np.ndarray, pools: Sequence[Sequence[int]] = (), neighbours: int = 8
) -> pa.Table:
    rows = [np.array(own, np.int32) for own in pools or [range(len(features_ND))]]
    settings = MineConfig(neighbours=neighbours, floor=-1.0, eps_low=-1.0)
    return find_neighbours(
        features_ND.astype(np.float32),
        [Pool(f"c{number}", own, own) for number, own in enumerate(rows)],
        settings,
    )


def composed(
    attributes: Attributes,
    table: pa.Table,
    seed: int = 0,
    asked: Sequence[tuple[int, int]] = (),
    **settings: object,
) -> pa.Table:
    config = ComposeConfig.model_validate({"copies": 0, "differences": 2, **settings})
    coded = compose.encode(attributes, config, title="title")
    asked_K = np.array([reference << 32 | target for reference, target in asked], np.int64)
    found, _ = compose.draw(coded, table, config, seed, asked_K)
    ids = [f"i{row}" for row in range(len(attributes))]
    phrases = compose.read_phrases(config.wording, "")
    return compose.write(found, coded, ids, phrases, seed=seed, encoder="e")


@pytest.fixture
def shop() -> tuple[list[dict[str, str]], pa.Table]:
    """60 garments of three attributes, where what is alike is near."""
    rng = np.random.default_rng(0)
    choices = {"colour": ["red", "blue", "green"], "sleeves": ["short", "long"], "type": ["a", "b"]}
    attributes = [
        {name: str(rng.choice(values)) for name, values in choices.items()} for _ in range(60)
    ]
    one_hot = [
        [float(own[name] == value) for name, values in choices.items() for value in values]
        for own in attributes
    ]
    return attributes, near(np.array(one_hot) + rng.normal(0, 0.1, (60, 7)), neighbours=20)


def test_a_column_that_says_the_same_as_another_is_left_out() -> None:
    german = {"red": "rot", "blue": "blau", "green": "grün"}
    rows = [
        {"colour": colour, "colour_de": german[colour], "shade": f"{colour} {number // 4}"}
        for number, colour in enumerate(["red", "blue", "green", "blue"] * 3)
    ]
    coded = compose.encode(rows, ComposeConfig(), title="title")
    assert coded.names == ["colour", "shade"]
    assert coded.left_out == {"colour_de": "it says the same as colour"}
    named = ComposeConfig(attributes=["colour", "colour_de"])
    assert compose.encode(rows, named, title="title").names == ["colour", "colour_de"]
    fewer = [{**row, "colour": ""} if number else row for number, row in enumerate(rows)]
    assert "colour_de" in compose.encode(fewer, ComposeConfig(), title="title").names


def test_a_triplet_differs_in_one_or_two_attributes_and_shares_as_many_or_more(
    shop: tuple[list[dict[str, str]], pa.Table],
) -> None:
    attributes, table = shop
    rows = composed(attributes, table).to_pylist()
    assert rows
    for row in rows:
        old, new = (attributes[int(row[side][1:])] for side in ("reference", "target"))
        changes = [f"{name}: {old[name]} -> {new[name]}" for name in old if old[name] != new[name]]
        assert row["changes"] == changes
        assert 1 <= len(changes) <= min(2, len(old) - len(changes) + 1)


def test_every_pair_is_there_in_both_directions_and_once(
    shop: tuple[list[dict[str, str]], pa.Table],
) -> None:
    found = composed(*shop)
    pairs = list(zip(found["reference"].to_pylist(), found["target"].to_pylist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert {(target, reference) for reference, target in pairs} == set(pairs)


def test_the_same_seed_draws_the_same_and_another_seed_another_draw(
    shop: tuple[list[dict[str, str]], pa.Table],
) -> None:
    assert composed(*shop).equals(composed(*shop))
    assert not composed(*shop).equals(composed(*shop, seed=1))


def test_pairs_are_near_each_other_and_within_a_category() -> None:
    """Colours alternate; two heaps of images lie apart, and each is two categories."""
    features = np.array(
        [[1, row / 100] for row in range(10)] + [[row / 100, 1] for row in range(10)]
    )
    attributes = [{"colour": "red" if row % 2 else "blue", "type": "shirt"} for row in range(20)]
    pools = [range(5), range(5, 20)]
    found = composed(attributes, near(features, pools, neighbours=4))
    for row in found.to_pylist():
        one, other = int(row["reference"][1:]), int(row["target"][1:])
        assert (one < 10) == (other < 10)
        assert (one < 5) == (other < 5) == (row["category"] == "c0")


def test_rare_values_are_drawn_more_often_than_their_share() -> None:
    """One garment in twenty is gold: of its neighbours' pairs, those with it are preferred."""
    rng = np.random.default_rng(1)
    colours = ["gold" if row % 20 == 0 else str(rng.choice(["red", "blue"])) for row in range(400)]
    attributes = [{"colour": colour} for colour in colours]
    table = near(rng.normal(size=(400, 3)), neighbours=60)

    def gold(rarity: float) -> int:
        found = composed(attributes, table, per_image=1, rarity=rarity)
        return sum("gold" in change for own in found["changes"].to_pylist() for change in own)

    assert gold(1.0) > 2 * gold(0.0) > 0


def test_copies_are_left_out() -> None:
    """Images 0 and 1 are one photograph under two colours; the rest are apart."""
    angles = np.array([0.0, 1e-4, 0.5, 0.9, 1.3, 1.7])
    features = np.stack([np.cos(angles), np.sin(angles)], 1)
    colours = ["red", "blue"] * 3
    attributes = [{"colour": colour} for colour in colours]
    table = near(features, neighbours=5)
    kept, without = (composed(attributes, table, per_image=5, copies=c) for c in (0.0, 0.1))
    copy = ("i0", "i1")
    assert copy in zip(kept["reference"].to_pylist(), kept["target"].to_pylist(), strict=True)
    pairs = list(zip(without["reference"].to_pylist(), without["target"].to_pylist(), strict=True))
    assert copy not in pairs
    assert pairs


def test_equal_pictures_are_left_out_however_many_they_are() -> None:
    """Every image is there twice, under two colours: a fifth of all pairs are equal."""
    angles = np.repeat([0.0, 0.4, 0.9, 1.5], 2)
    features = np.stack([np.cos(angles), np.sin(angles)], 1)
    attributes = [{"colour": colour} for colour in ["red", "blue"] * 4]
    found = composed(attributes, near(features, neighbours=5), per_image=5, copies=0.02)
    pairs = zip(found["reference"].to_pylist(), found["target"].to_pylist(), strict=True)
    apart = [{int(one[1:]) // 2, int(other[1:]) // 2} for one, other in pairs]
    assert apart
    assert all(len(both) == 2 for both in apart)


def test_pairs_that_are_evaluated_on_are_left_out_in_both_directions(
    shop: tuple[list[dict[str, str]], pa.Table],
) -> None:
    def pairs(asked: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
        found = composed(*shop, per_image=20, asked=asked)
        sides = (found[side].to_pylist() for side in ("reference", "target"))
        return {(int(one[1:]), int(other[1:])) for one, other in zip(*sides, strict=True)}

    every = pairs(())
    asked = sorted(every)[::7]
    left = every - set(asked) - {(target, reference) for reference, target in asked}
    assert pairs(asked) == left


def test_an_unknown_value_is_neither_shared_nor_different() -> None:
    """Of colour, type and size the first two differ, and one of the sizes is unknown."""
    one, other = {"colour": "red", "type": "a"}, {"colour": "blue", "type": "b"}
    sizes = [{"size": "s"}, {"size": "m"}]
    table = near(np.eye(4))
    for first, expected in ((one, False), ({**one, **sizes[0]}, True)):
        found = composed([first, {**other, **sizes[0]}, *sizes], table, per_image=4)
        of_first = found.filter(pc.equal(found["reference"], "i0"))
        assert ("i1" in of_first["target"].to_pylist()) == expected


def test_blocks_of_any_size_count_the_same(
    shop: tuple[list[dict[str, str]], pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes, table = shop
    config = ComposeConfig()
    coded = compose.encode(attributes, config, title="title")
    _, whole = compose.draw(coded, table, config, 0)
    monkeypatch.setattr(drawing, "BLOCK", 7)
    _, parts = compose.draw(coded, table, config, 0)
    drawn = ("triplets", "images_without")
    assert {n: v for n, v in whole.items() if n not in drawn} == {
        n: v for n, v in parts.items() if n not in drawn
    }


def test_no_neighbours_give_no_triplets() -> None:
    attributes = [{"colour": "red"}, {"colour": "blue"}]
    assert len(composed(attributes, near(np.eye(2), [[0], [1]]))) == 0


def test_composed_triplets_are_train_triplets_of_a_data_set(
    shop: tuple[list[dict[str, str]], pa.Table],
) -> None:
    found = compose.triplets(composed(*shop))
    assert found.schema.equals(TRIPLET)
    assert set(found["split"].to_pylist()) == {"train"}


def test_titles_single_values_and_attributes_of_too_many_values_are_left_out() -> None:
    attributes = [
        {"title": f"Shirt {row}", "brand": "B", "sku": f"{row}", "colour": ["red", "blue"][row % 2]}
        for row in range(9)
    ]
    coded = compose.encode(attributes, ComposeConfig(most_values=5), title="title")
    assert coded.names == ["colour"]
    assert list(coded.left_out) == ["title", "brand", "sku"]
    named = compose.encode(attributes, ComposeConfig(attributes=["sku"]), title="title")
    assert named.names == ["sku"]


@pytest.mark.parametrize(
    ("attributes", "asked", "message"),
    [
        ([{"colour": "red"}, {"colour": "Red "}], [], "colour: it has one value"),
        ([{}, {}], [], "no attributes"),
        ([{"colour": "red"}, {"colour": "blue"}], ["color"], "some of: colour"),
    ],
)
def test_nothing_to_compose_from_is_said(
    attributes: Attributes, asked: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        compose.encode(attributes, ComposeConfig(attributes=asked), title="title")


def test_the_demos_vocabulary_words_its_attributes() -> None:
    phrases = compose.read_phrases("demo", "")
    assert "has polka dots" in phrases.options(Change("pattern", "plain", "dotted"))
    assert "is red" in phrases.options(Change("colour", "blue", "red"))
    rng = np.random.default_rng(0)
    both = [Change("colour", "blue", "red"), Change("sleeves", "none", "long")]
    texts = Counter(text for _ in range(40) for text in phrases.captions(rng, both))
    assert any("red" in text and ("sleeves" in text or "wrists" in text) for text in texts)
    with pytest.raises(ConfigError, match="no phrase for a change"):
        phrases.options(Change("material", "silk", "wool"))


def test_a_users_own_wording_replaces_ours(tmp_path: Path) -> None:
    (tmp_path / "wording.yaml").write_text(
        "attributes:\n  colour: {phrases: ['{new} statt {old}'], values: {ROT: ['ist rot']}}\n"
    )
    phrases = compose.read_phrases("wording.yaml", str(tmp_path))
    assert phrases.options(Change("colour", "rot", "blau")) == ["blau statt rot"]
    assert phrases.options(Change("colour", "blau", "rot")) == ["ist rot"]
    assert phrases.captions(np.random.default_rng(0), [Change("colour", "rot", "blau")]) == [
        "blau statt rot"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("attributes: {colour: {phrases: ['is {colour}']}}", "KeyError"),
        ("attributes: {colour: {phrases: ['is {']}}", "ValueError"),
        ("attributes: {colour: {phrases: []}}", "attributes.colour.phrases"),
        ("colour: [is red]", "attributes"),
        ("attributes: [", "malformed YAML"),
    ],
)
def test_a_wording_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        compose.read_phrases("own.yaml", str(tmp_path))


def test_a_column_of_which_nearly_every_image_has_a_value_of_its_own_is_left_out() -> None:
    rows = [
        {"sku": f"S-{n}", "colour": ("red", "blue", "green")[n % 3], "size": "SML"[n // 3 % 3]}
        for n in range(45)
    ]
    coded = compose.encode(rows, ComposeConfig(), title="title")
    assert coded.names == ["colour", "size"]
    assert coded.left_out == {"sku": "nearly every image has a value of its own"}
    asked = compose.encode(rows, ComposeConfig(attributes=["sku"]), title="title")
    assert asked.names == ["sku"]
    # Few images a value are no values of their own
    pairs = [{"colour": f"colour {n // 2}"} for n in range(29)]
    assert compose.encode(pairs, ComposeConfig(), title="title").names == ["colour"]
    half = [{"pattern": f"pattern {n}" if n % 2 else "plain"} for n in range(120)]
    assert compose.encode(half, ComposeConfig(), title="title").names == ["pattern"]


@pytest.mark.parametrize("first", ["colour", "farbe"])
def test_of_two_columns_that_say_the_same_the_fuller_stays(first: str) -> None:
    words = {"red": "rot", "blue": "blau", "green": "grün"}
    rows = []
    for n in range(60):
        colour = list(words)[n % 3]
        own = {"colour": colour if n % 10 else "", "farbe": words[colour], "size": "SM"[n // 3 % 2]}
        rows.append({name: own[name] for name in sorted(own, key=lambda name: name != first)})
    coded = compose.encode(rows, ComposeConfig(), title="title")
    assert set(coded.names) == {"farbe", "size"}
    assert coded.left_out == {"colour": "it says the same as farbe"}
