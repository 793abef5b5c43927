"""The table of single queries, and the protocols side by side."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from raycd.data.build import DatasetBuilder, TripletRow
from raycd.evaluate import evaluate, per_query
from raycd.features import Features
from raycd.report.table import recall_table
from raycd.runtime.evaluate.evaluation import PROTOCOLS, AskedQueries, metrics

ANGLES = torch.tensor([0.0, 20.0, 45.0, 80.0]) * torch.pi / 180
IMAGES = Features.of("abcd", torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1))


def query(rows: Sequence[Any]) -> torch.Tensor:
    return IMAGES.take(row["reference"] for row in rows)


@pytest.fixture
def found() -> tuple[Any, list[AskedQueries]]:
    """Return two queries like their reference, and one that has lost it, under every protocol."""
    builder = DatasetBuilder()
    builder.add_gallery("hat", "val", "abcdx", source="here")
    for number, (reference, *targets) in enumerate((["a", "c", "d"], ["b", "d"], ["x", "a"])):
        row = TripletRow(
            f"hat/{number}",
            "hat",
            "val",
            reference,
            targets[0],
            ["is red", "long"],
            further_targets=targets[1:] or None,
        )
        builder.add_triplet(row, where="here")
    data = builder.build({})
    return data, [
        AskedQueries(
            protocol, "sum", evaluate(data, "val", IMAGES, query, protocol=protocol, top=3)
        )
        for protocol in PROTOCOLS
    ]


def test_each_query_has_its_rank_and_what_it_found(found: tuple[Any, list[AskedQueries]]) -> None:
    table = per_query.table(found[0], "val", found[1])
    assert table.schema.equals(per_query.PER_QUERY)
    first, second, lost = table.to_pylist()[:3]
    assert {name: first[name] for name in ("protocol", "variant", "category", "triplet_id")} == {
        "protocol": "original",
        "variant": "sum",
        "category": "hat",
        "triplet_id": "hat/0",
    }
    assert (first["text"], first["targets"], first["rank"]) == ("Is red and long", ["c", "d"], 3)
    assert first["top"] == ["a", "b", "c"]
    assert first["scores"] == pytest.approx(torch.tensor([0, 20, 45.0]).deg2rad().cos().tolist())
    assert (second["rank"], second["subset_rank"]) == (4, None)
    assert (lost["rank"], lost["top"], lost["scores"]) == (None, [], [])
    assert [row["rank"] for row in table.to_pylist()[3:6]] == [2, 3, None]


def test_protocols_stand_side_by_side(found: tuple[Any, list[AskedQueries]]) -> None:
    asked = found[1]
    shown = metrics(asked)
    assert list(shown["variants"]["sum"]) == list(PROTOCOLS)
    for one in asked:
        assert shown["variants"]["sum"][one.protocol] == one.found.recalls["average"]
    assert all(protocol in recall_table(shown) for protocol in PROTOCOLS)
    assert metrics(asked[:1])["variants"]["sum"] == asked[0].found.recalls
