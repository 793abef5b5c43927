"""Which rows of a comparison an encoder has something for, told before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.comparison import heads
from jobs.comparison.plan import ALWAYS, Entry, Plan, make_plan
from raycd.config import Config
from raycd.errors import ConfigError, RaycdError, WeightsError
from raycd.model import encoder as encoders
from raycd.model import fusion, maps
from raycd.model.fusion import Head
from raycd.runtime import pipeline
from raycd.runtime.stages.fresh import fresh_head
from tests.packages import HALVES, TOY, install

OF_MAPS = {name for name in fusion.registry.HEADS if fusion.head_class(name).needs - {"words"}}


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install an encoder without maps or tokens, and a head that does not say it has no weights."""
    points = "[raycd.encoders]\ntoy = toy_encoder\n"
    install(monkeypatch, tmp_path / "site", "toy_encoder", TOY, points)
    install(monkeypatch, tmp_path / "own", "halves", HALVES, "[raycd.heads]\nhalves = halves:build")


@pytest.fixture
def config(tmp_path: Path, tiny_settings: dict[str, Any]) -> Config:
    changes = {
        "runs": str(tmp_path / "runs"),
        "tracking": {"enabled": False},
        "encoder": {"name": "toy", "pretrained": "3"},
        "stage2": {**tiny_settings["stage2"], "bilinear_dim": 2},
    }
    return Config.model_validate(tiny_settings | changes)


def plan(config: Config, names: str, **options: Any) -> Plan:
    given: dict[str, Any] = {"variants": "original", "settings": [], "seeds": 1}
    return make_plan(config, heads=names, **(given | options))


def test_all_heads_are_those_that_the_encoder_has_something_for(config: Config) -> None:
    found = heads.fitted(config, plan(config, "all"))
    assert {entry.head for entry in found.entries} == (
        {*fusion.names()} - OF_MAPS - {*ALWAYS, "joint", "halves", "lincir"}
    )
    assert found.notes == [
        f"Left out: {', '.join(sorted(OF_MAPS))}: it is not known where this encoder has what the "
        "head needs (map) (got: a tower of the kind Linear)"
    ]
    assert found.baseline == "combiner"


def test_a_reason_of_one_line_is_told_as_it_is(config: Config) -> None:
    def build(entry: Entry) -> Head:
        if entry.head in OF_MAPS:
            raise WeightsError("it has no maps")
        return fusion.create(fusion.HeadConfig("combiner", 4))

    [left_out] = plan(config, "all").fitted(build).notes
    assert left_out == f"Left out: {', '.join(sorted(OF_MAPS))}: it has no maps"


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ("combiner,cosmo", {}),
        ("all", {"baseline": "cosmo"}),
        ("all", {"settings": ["cosmo.stage2.lr=1e-3"]}),
    ],
)
def test_a_row_that_was_asked_for_is_an_error_before_anything_is_trained(
    names: str, options: dict[str, Any], config: Config
) -> None:
    with pytest.raises(WeightsError, match=r"needs \(map\)(.|\n)*take a head of pooled features"):
        heads.fitted(config, plan(config, names, **options))
    run = Path(config.runs) / "tiny"
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"encoder"}


def test_an_impossible_size_of_a_row_is_told_likewise(config: Config) -> None:
    settings = ["clip_cd.stage2.bilinear_dim=6"]
    with pytest.raises(ConfigError, match="bilinear_dim"):
        heads.fitted(config, plan(config, "combiner,clip_cd", settings=settings))


def test_a_head_without_weights_is_a_row_that_does_not_train_whatever_it_says(
    config: Config,
) -> None:
    assert fusion.head_class("halves").trains
    found = heads.fitted(config, plan(config, "combiner,halves"))
    assert [entry.name for entry in found.entries] == ["combiner"]
    assert [entry.name for entry in found.untrained] == [*ALWAYS, "halves"]
    with pytest.raises(ConfigError, match=r"no head that trains\n.*halves"):
        heads.fitted(config, plan(config, "halves"))
    with pytest.raises(ConfigError, match="--set names a row that trains nothing"):
        heads.fitted(config, plan(config, "combiner,halves", settings=["halves.stage2.lr=1e-3"]))


def test_what_an_encoder_gives_is_in_the_record_of_its_stage_and_asked_once(
    config: Config, monkeypatch: pytest.MonkeyPatch, tiny_settings: dict[str, Any]
) -> None:
    demo = config.model_copy(update={"encoder": Config.model_validate(tiny_settings).encoder})
    sizes = {"stage2": {"head": "val"}, "embed": {"map_size": 2}}
    demo = Config.model_validate(demo.model_dump() | sizes)
    run = pipeline.run(demo, until="encoder").run
    loaded = encoders.load_saved(run.local("encoder") / "encoder")
    known = pipeline.recorded(run, "encoder")["gives"]
    assert known["lacks"] == {}
    for size in (0, 1, 2, 3, 99):
        measured = maps.shapes(loaded, maps.NEEDS, size)
        assert maps.shapes_of(known, maps.NEEDS, size) == measured

    def again(*_: object, **__: object) -> None:
        raise AssertionError("the encoder is loaded")

    fresh = fresh_head(demo, run)
    monkeypatch.setattr(encoders, "load_saved", again)
    with torch.no_grad():
        same = fresh_head(demo, run)
    for name, value in fresh.state_dict().items():
        assert torch.equal(same.state_dict()[name], value)


def test_a_run_of_an_earlier_version_is_asked_for_what_its_encoder_gives(config: Config) -> None:
    run = pipeline.run(_with(config, "sum"), until="encoder").run
    record = pipeline.recorded(run, "encoder")
    del record["gives"]
    run.write_json("encoder/stage.json", record)
    with pytest.raises(RaycdError, match=r"needs \(map\)"):
        fresh_head(_with(config, "cosmo"), run)
    assert type(fresh_head(_with(config, "combiner"), run)).__name__ == "Combiner"


def _with(config: Config, head: str) -> Config:
    return config.model_copy(update={"stage2": config.stage2.model_copy(update={"head": head})})
