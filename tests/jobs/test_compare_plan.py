"""What a comparison trains: rows, variants, settings of one row, and how long each row trains."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.comparison.plan import ALWAYS, deciding, make_plan
from raycd.config import Config, flatten
from raycd.errors import ConfigError
from raycd.model import fusion

CONFIG = Config.model_validate({"seed": 7, "stage2": {"epochs": 30, "k": 5}})


def plan(**changes: Any) -> Any:
    given: dict[str, Any] = {"heads": "combiner,clip_cd", "variants": "original,pseudo"}
    given |= {"settings": [], "seeds": 2}
    return make_plan(CONFIG, **(given | changes))


def test_all_is_every_head_that_trains_beside_those_without_weights() -> None:
    found = plan(heads="all")
    assert {entry.head for entry in found.entries} == set(fusion.names()) - {
        *ALWAYS,
        "joint",
        "lincir",
    }
    assert "sum" in {entry.head for entry in found.untrained}
    assert list(found.seeds) == [7, 8]
    assert found.baseline == "combiner"


def test_a_head_can_have_several_rows_and_each_its_own_settings() -> None:
    found = plan(
        heads="combiner,bare=combiner",
        settings=["bare.stage2.dropout=0", "bare.mine.alpha=0.7", "combiner.stage2.lr=1e-4"],
        baseline="bare",
    )
    combiner, bare = (entry.config(CONFIG, "pseudo") for entry in found.entries)
    assert (combiner.stage2.head, bare.stage2.head) == ("combiner", "combiner")
    assert (combiner.stage2.dropout, bare.stage2.dropout) == (0.5, 0.0)
    assert (combiner.mine.alpha, bare.mine.alpha) == (0.6, 0.7)
    assert (combiner.stage2.lr, bare.stage2.lr) == (1e-4, 2e-5)
    assert not found.entries[0].config(CONFIG, "original").stage2.pseudo


def test_a_row_can_have_its_own_pseudo_triplets_and_loss() -> None:
    own = {"mine.replace": "reference", "mine.rare_texts": 2, "stage2.pseudo_weight": "score"}
    own |= {"stage2.soft_targets": 0.2, "stage2.bilinear_dropout": 0.3}
    settings = [f"clip_cd.{name}={value}" for name, value in own.items()]
    combiner, clip_cd = (
        flatten(entry.config(CONFIG, "pseudo")) for entry in plan(settings=settings).entries
    )
    assert {name: clip_cd[name] for name in own} == own
    assert all(combiner[name] != value for name, value in own.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": "combine"}, "--heads names no fusion head\n  got:      combine\n"),
        ({"heads": "combiner,x=nothing"}, "--heads names no fusion head\n  got:      nothing\n"),
        ({"heads": "all,combiner"}, "--heads names all, and more beside it\n"),
        ({"heads": "combiner,combiner=clip_cd"}, "two rows have one name"),
        (
            {"heads": "combiner,joint"},
            "--heads names a head that no comparison has\n  got:      joint",
        ),
        ({"heads": "lincir"}, "--heads names a head that no comparison has\n  got:      lincir\n"),
        ({"heads": "sum=clip_cd"}, "two rows have one name"),
        ({"heads": "sum"}, "--heads names no head that trains"),
        ({"heads": "combiner,"}, "--heads cannot be read"),
        ({"variants": "pseudo,with"}, "--variants: there is no such variant\n  got:      with\n"),
        ({"seeds": 0}, "--seeds: impossible value"),
        ({"baseline": "tirgs"}, "--baseline names no row of this comparison\n  got:      tirgs"),
        (
            {"heads": "combiner,sum", "settings": ["sum.stage2.lr=1"]},
            "--set names a row that trains nothing\n  got:      sum\n",
        ),
        (
            {"heads": "tirg", "settings": ["tirg.stage2.dropout=0"]},
            "--set gives dropout to a head that has none\n  got:      tirg, which is tirg\n",
        ),
        ({"heads": "a|b=tirg"}, "--heads gives a row a name that tables cannot have"),
        ({"heads": "=tirg"}, "--heads gives a row a name that tables cannot have"),
        ({"settings": ["combiner"]}, "--set cannot be read"),
        ({"settings": ["tirgs.stage2.lr=1"]}, "--set names no row of this comparison"),
        ({"settings": ["combiner.stage2.drop=0"]}, "unknown setting\n  got:      stage2.drop"),
        ({"settings": ["combiner.stage2.epochs=3"]}, "a row cannot have this setting of its own"),
        ({"settings": ["combiner.stage2.head=sum"]}, "a row cannot have this setting of its own"),
        ({"settings": ["combiner.stage1.lr=1"]}, "a row cannot have this setting of its own"),
        ({"settings": ["combiner.mine.floor=0"]}, "a row cannot have this setting of its own"),
        ({"settings": ["combiner.stage2.dropout=2"]}, "stage2.dropout: impossible value"),
    ],
)
def test_a_mistake_is_one_message(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(**changes)
    assert str(caught.value).startswith(message)


def test_what_decides_a_cell_has_the_heads_settings_and_the_seed_and_nothing_of_the_machine() -> (
    None
):
    names = set(deciding(CONFIG, ["stage2"]))
    assert {"stage2.head", "stage2.dropout", "stage2.epochs", "seed", "evaluate.protocol"} <= names
    assert not {name for name in names if name.startswith(("mine.", "compute.", "stage1."))}
    assert "mine.alpha" in deciding(CONFIG, ["stage2", "filter"])
    assert "embed.precision" in deciding(CONFIG, ["stage2"], ["embed"])
