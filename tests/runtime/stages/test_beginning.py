"""A run that begins with a bundle: its encoder, and the head that stage 2 goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raycd import bundle
from raycd.config import Config
from raycd.data.build import DatasetBuilder
from raycd.errors import ConfigError, WeightsError
from raycd.model.encoder import Encoder
from raycd.runtime import pipeline
from raycd.runtime.stages import beginning, reading
from raycd.train import pretrain
from raycd.train.fuse import new_head

SIZES = {"bilinear_dim": 8, "projection_dim": 32, "hidden_dim": 32}


def config(folder: Path, **stage2: Any) -> Config:
    settings = {"encoder": {"bundle": str(folder)}, "stage2": {**SIZES, **stage2}}
    return Config.model_validate(settings)


def test_a_run_begins_with_the_encoder_and_the_head_of_a_bundle(
    tiny_bundle: Any, tmp_path: Path
) -> None:
    asked, loaded = config(tiny_bundle.folder), bundle.load(tiny_bundle.folder)
    encoder, name = beginning.load_encoder(asked)
    assert (encoder.fingerprint(), name) == (loaded.manifest.encoder.fingerprint, "raycd-demo")
    beginning.keep_head(asked, tmp_path)
    fresh, _ = new_head(asked, encoder.dim)
    known = loaded.head.state_dict()
    assert not all(torch.equal(own, known[key]) for key, own in fresh.state_dict().items())
    head = beginning.go_on(fresh, asked, tmp_path)
    assert all(torch.equal(own, known[key]) for key, own in head.state_dict().items())


def test_a_head_of_another_shape_is_refused_before_any_training(
    tiny_bundle: Any, tmp_path: Path
) -> None:
    beginning.keep_head(config(tiny_bundle.folder), tmp_path)
    for other in (
        config(tiny_bundle.folder, hidden_dim=16),
        config(tiny_bundle.folder, head="sum"),
    ):
        head, _ = new_head(other, beginning.load_encoder(other)[0].dim)
        with pytest.raises(ConfigError, match=r"does not fit that of encoder\.bundle"):
            beginning.go_on(head, other, tmp_path)


def test_a_head_that_trains_begins_anew_where_that_of_the_bundle_has_no_weights(
    bundle_with_head: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = config(bundle_with_head("sum"))
    beginning.keep_head(asked, tmp_path)
    head, _ = new_head(asked, beginning.load_encoder(asked)[0].dim)
    assert beginning.go_on(head, asked, tmp_path) is head
    untrained = config(bundle_with_head("sum"), epochs=0)
    with pytest.raises(ConfigError, match=r"does not fit that of encoder\.bundle"):
        beginning.go_on(head, untrained, tmp_path)


def test_a_bundles_head_is_served_as_it_is_where_there_are_no_triplets(
    tiny_bundle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    builder = DatasetBuilder()
    builder.add_gallery("all", "train", ["i0", "i1"], source="x")
    data = {"data": {"format": "catalogue"}}
    asked = Config.model_validate({**config(tiny_bundle.folder).model_dump(), **data})
    fitted = reading.fitted(asked, builder.build({}))
    assert (fitted.stage2.head, fitted.stage2.epochs) == ("clip_cd", 0)
    assert "the head clip_cd is served" in capsys.readouterr().err
    plain = Config.model_validate(data)
    assert reading.fitted(plain, builder.build({})).stage2.head == "sum"
    titled = builder.build({}, {"i0": {"title": "a red dress"}, "i1": {"title": "a hat"}})
    adapting = Config.model_validate({**asked.model_dump(), "adapt": {"epochs": 2}})
    assert adapting.data.title == "title"
    fitted = reading.fitted(adapting, titled)
    assert (fitted.adapt.epochs, fitted.stage2.epochs) == (0, 0)
    assert "the bundle's head knows the encoder as it is" in capsys.readouterr().err
    alone = Config.model_validate({**plain.model_dump(), "adapt": {"epochs": 2}})
    assert reading.fitted(alone, titled).adapt.epochs == 2


def test_the_demos_pre_training_leaves_a_card_alone_that_is_not_to_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def pretrained(settings: object, target_pad: object, device: str) -> None:
        asked.append(device)
        raise ConfigError("it is asked where it trains, and no more")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pretrain, "pretrain", pretrained)
    for device in ("cpu", "auto"):
        settings = {"encoder": {"pretrained": "demo"}, "pretrain": {"cache": str(tmp_path)}}
        with pytest.raises(ConfigError, match="no more"):
            beginning.load_encoder(
                Config.model_validate(settings | {"compute": {"device": device}})
            )
    assert asked == ["cpu", "cuda"]


def test_without_a_bundle_nothing_is_kept_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    plain = Config()
    beginning.keep_head(plain, tmp_path)
    assert not list(tmp_path.iterdir())
    head, _ = new_head(config(tmp_path), 16)
    assert beginning.go_on(head, plain, tmp_path) is head
    assert {"encoder.bundle", "encoder.reduced"} == set(beginning.unused(plain))
    with pytest.raises(WeightsError):
        beginning.load_encoder(config(tmp_path))


def test_the_demos_clip_is_no_model_that_brings_its_own_weights() -> None:
    named = {"name": "local-dir:/nowhere", "pretrained": "demo"}
    with pytest.raises(WeightsError, match="/nowhere"):
        beginning.load_encoder(Config.model_validate({"encoder": named}))


def test_a_saved_encoder_keeps_its_reduced_decoding(
    new_encoder: Callable[[], Encoder], tmp_path: Path
) -> None:
    saved = new_encoder()
    saved.preprocess = replace(saved.preprocess, reduced=True)
    saved.save(tmp_path / "encoder")
    asked = Config.model_validate({"encoder": {"pretrained": str(tmp_path / "encoder")}})
    assert beginning.load_encoder(asked)[0].fingerprint() == saved.fingerprint()


def test_the_encoder_of_a_bundle_decodes_as_it_is_asked_and_keeps_its_preprocessing(
    tiny_bundle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {"bundle": str(tiny_bundle.folder), "reduced": True}
    wanted |= {"preprocess": "target_pad", "target_pad": 1.5}
    loaded, _ = beginning.load_encoder(Config.model_validate({"encoder": wanted}))
    assert loaded.preprocess.reduced
    said = capsys.readouterr().err
    assert "encoder.preprocess target_pad by 1.5 changes nothing" in said


def test_weights_that_have_changed_under_their_name_are_read_again(
    new_encoder: Callable[[], Encoder], tmp_path: Path
) -> None:
    new_encoder().save(tmp_path / "encoder")
    asked = Config.model_validate(
        {
            "name": "run",
            "runs": str(tmp_path / "runs"),
            "data": {"format": "synthetic"},
            "encoder": {"pretrained": str(tmp_path / "encoder")},
            "stage2": {"head": "sum"},
            "tracking": {"enabled": False},
        }
    )
    assert pipeline.run(asked, until="encoder").done == ["encoder"]
    assert pipeline.run(asked, until="encoder").done == []
    other = new_encoder()
    with torch.no_grad():
        other.clip.text_projection += 1
    other.save(tmp_path / "encoder")
    again = pipeline.run(asked, until="encoder")
    assert again.done == ["encoder"]
    assert pipeline.recorded(again.run, "encoder")["encoder"] == other.fingerprint()
    shutil.rmtree(tmp_path / "encoder")  # what was read of it stays
    assert pipeline.run(asked, until="encoder").done == []


def test_only_files_that_an_encoder_is_read_from_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RN50", "demo", "weights"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")

    def looked_at(**encoder: str) -> list[str]:
        found = beginning.source(Config.model_validate({"encoder": encoder}))
        return [str(Path(path).parent) for path, _ in found]

    assert looked_at(name="RN50", pretrained="demo") == []
    assert looked_at(name="RN50", pretrained="weights") == ["weights"]
    assert looked_at(name="hf-hub:a/b", pretrained="weights") == []
    assert looked_at(name=f"local-dir:{tmp_path}/RN50") == [f"{tmp_path}/RN50"]
    assert looked_at(name="RN50", pretrained="x" * 300) == []
