"""Each family of open_clip: what raycd makes of it equals what open_clip makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.push_to_hf_hub import save_for_hf
from torch import nn

from raycd.config import EncoderConfig
from raycd.data.preprocess import Preprocess
from raycd.errors import WeightsError
from raycd.model import architecture
from raycd.model import encoder as encoders
from raycd.model.encoder import CONFIG, PREPROCESS, Encoder, load_saved
from raycd.model.folding import fold_batch_norms
from tests.families import JAPANESE, families, new, new_roberta, pictures, write_tokenizer

TEXTS = ["is blue, and has long sleeves", JAPANESE, "red " * 40, ""]
NAMES = list(families(Path()))
HUGGING_FACE = ["SigLIP2", "CLIPA"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a trained Hugging Face tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def member(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    """Return a function that makes a family's tiny member, always the same."""
    configs = tmp_path_factory.mktemp("configs")
    return lambda name: new(families(tokenizer)[name], configs)


@torch.inference_mode()
def ours(encoder: Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    """Return image features of the pictures and text features of TEXTS."""
    pixels = torch.stack([encoder.preprocess(picture) for picture in pictures()])
    return encoder.encode_images(pixels), encoder.encode_tokens(encoder.tokenize(TEXTS))


@torch.inference_mode()
def theirs(clip: Any, transform: Any, words: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same by open_clip alone."""
    images = torch.stack([transform(picture) for picture in pictures()])
    tokens = words(TEXTS)
    return clip.encode_image(images, normalize=False), clip.encode_text(tokens, normalize=False)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Tell whether features are the same but for the order of sums (channels last)."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_open_clip_loads_what_raycd_saved_with_the_same_pixels_tokens_and_features(
    name: str, member: Callable[[str], Encoder], tmp_path: Path
) -> None:
    encoder = member(name)
    encoder.save(tmp_path)
    schema = f"local-dir:{tmp_path}"
    clip, _, transform = open_clip.create_model_and_transforms(schema)
    words = open_clip.get_tokenizer(schema)
    loaded = load_saved(tmp_path)
    assert loaded.fingerprint() == encoder.fingerprint()
    assert loaded.preprocess == encoder.preprocess
    for picture in pictures():
        pixels = loaded.preprocess(picture)
        assert torch.equal(loaded.preprocess.normalise(pixels[None])[0], transform(picture))
    assert torch.equal(loaded.tokenize(TEXTS), words(TEXTS))
    expected = theirs(clip.eval(), transform, words)
    for mine, before, other in zip(ours(loaded), ours(encoder), expected, strict=True):
        assert torch.equal(mine, before)
        assert close(mine, other)
        assert mine.shape[1] == loaded.dim


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_open_clip_saved_is_loaded_with_its_preprocessing(
    name: str, member: Callable[[str], Encoder], tokenizer: Path, tmp_path: Path
) -> None:
    encoder = member(name)
    clip = encoder.clip.to(memory_format=torch.contiguous_format)
    tokens: Any = encoder.tokenizer
    words = tokens._inner
    described = encoder.preprocess.open_clip()
    open_clip.set_model_preprocess_cfg(clip, described)
    if name not in HUGGING_FACE:  # open_clip saves no SimpleTokenizer
        words = open_clip.tokenizer.HFTokenizer(str(tokenizer))
    save_for_hf(clip, words, encoder.model_config, str(tmp_path), safe_serialization=True)
    assert not (tmp_path / PREPROCESS).exists()
    encoder.clip.visual.to(memory_format=encoder.memory_format)
    expected = ours(encoder)
    for config in (
        EncoderConfig(pretrained=str(tmp_path)),
        EncoderConfig(name=f"local-dir:{tmp_path}", pretrained=""),
    ):
        loaded = encoders.load(config)
        # open_clip's own saving forgets the fill
        assert loaded.preprocess == Preprocess.of_open_clip(described | {"fill_color": 0})
        loaded.preprocess = encoder.preprocess
        for mine, other in zip(ours(loaded), expected, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("name", NAMES)
def test_what_trains_is_what_features_are_made_of_and_nothing_else(
    name: str, member: Callable[[str], Encoder]
) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = member(name)
        encoder.trainable("both", grad_checkpointing=checkpointing)
        pixels = torch.stack([encoder.preprocess(picture) for picture in pictures()[:1]])
        text_BD = encoder.encode_tokens(encoder.tokenize(TEXTS))
        (encoder.encode_images(pixels).square().sum() + text_BD.square().sum()).backward()  # type: ignore[no-untyped-call]  # torch's
        parameters = dict(encoder.clip.named_parameters())
        trained = {key for key, value in parameters.items() if value.requires_grad}
        assert {key for key in trained if parameters[key].grad is None} == set()
        left = {key.split(".")[0] for key in parameters.keys() - trained}
        assert left <= {"logit_scale", "logit_bias", "text_decoder"}
        assert ("text_decoder" in left) == (name == "CoCa")
        assert ("logit_bias" in left) == (name == "SigLIP2")
        gradients.append({key: value.grad for key, value in parameters.items()})
    for key, gradient in gradients[0].items():
        again = gradients[1][key]
        assert (gradient is None) == (again is None)
        if gradient is not None and again is not None:
            torch.testing.assert_close(again, gradient, rtol=1e-3, atol=1e-4)


def test_a_coca_answers_without_its_writer_of_captions(member: Callable[[str], Encoder]) -> None:
    encoder = member("CoCa")
    expected = ours(encoder)
    with torch.no_grad():
        for parameter in encoder.clip.text_decoder.parameters():
            parameter.fill_(float("nan"))
    for mine, before in zip(ours(encoder), expected, strict=True):
        assert torch.equal(mine, before)
        assert not torch.allclose(mine.norm(dim=-1), torch.ones(len(mine)), atol=1e-2)


@pytest.mark.parametrize("name", ["MobileCLIP", "CLIP ResNet"])
def test_folding_batch_norms_keeps_a_familys_features(
    name: str, member: Callable[[str], Encoder]
) -> None:
    encoder = member(name)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    before, _ = ours(encoder)
    fold_batch_norms(encoder.clip)
    after, _ = ours(encoder)
    assert close(after, before)


def test_a_batch_norm_with_an_activation_in_it_stays() -> None:
    from timm.layers.norm_act import BatchNormAct2d

    module = nn.Sequential(nn.Conv2d(3, 3, 1), BatchNormAct2d(3)).eval()
    pixels = torch.randn(1, 3, 4, 4)
    before = module(pixels)
    fold_batch_norms(module)
    assert torch.equal(module(pixels), before)
    assert before.min() == 0


# ---- preprocessing


def test_target_pad_is_a_choice_beside_the_encoders_own(
    member: Callable[[str], Encoder], tmp_path: Path
) -> None:
    encoder = member("CLIP ViT")
    encoder.preprocess = encoder.preprocess.with_target_pad(1.25)
    encoder.save(tmp_path)
    loaded = encoders.load(EncoderConfig(pretrained=str(tmp_path), preprocess="auto"))
    assert loaded.preprocess == encoder.preprocess  # of what raycd saved, its own
    (tmp_path / PREPROCESS).unlink()
    assert load_saved(tmp_path).preprocess == encoder.preprocess
    described = json.loads((tmp_path / CONFIG).read_text())
    del described["preprocess_cfg"]["target_pad"]
    (tmp_path / CONFIG).write_text(json.dumps(described))
    assert load_saved(tmp_path).preprocess.target_pad is None
    chosen = EncoderConfig(pretrained=str(tmp_path), preprocess="target_pad", target_pad=1.5)
    assert encoders.load(chosen).preprocess.target_pad == 1.5


def test_settings_that_a_saved_folder_does_not_follow_are_said_to_change_nothing(
    member: Callable[[str], Encoder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = member("CLIP ViT")
    encoder.save(tmp_path)
    for asked in ({"pretrained": str(tmp_path)}, {"name": f"local-dir:{tmp_path}"}):
        padded = EncoderConfig.model_validate(asked | {"target_pad": 1.25})
        assert encoders.load(padded).preprocess == encoder.preprocess
        assert "target_pad by 1.25 changes nothing" in capsys.readouterr().err
        encoders.load(padded.model_copy(update={"preprocess": "auto"}))
        assert capsys.readouterr().err == ""
        encoders.load(EncoderConfig.model_validate(asked | {"configs": str(tmp_path)}))
        assert "encoder.configs changes nothing" in capsys.readouterr().err


@pytest.fixture
def on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that the hub's clients read as they have downloaded it: me/mine."""
    commit = 40 * "a"
    (folder := tmp_path / f"models--me--mine/snapshots/{commit}").mkdir(parents=True)
    (reference := tmp_path / "models--me--mine/refs/main").parent.mkdir()
    reference.write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def test_what_raycd_saved_is_of_the_hub_what_it_is_of_a_folder(
    member: Callable[[str], Encoder], on_the_hub: Path
) -> None:
    encoder = member("SigLIP2")
    encoder.preprocess = replace(encoder.preprocess.with_target_pad(1.25), reduced=True)
    encoder.save(on_the_hub)
    loaded = encoders.load(EncoderConfig(name="hf-hub:me/mine", pretrained="ignored"))
    assert loaded.preprocess == encoder.preprocess
    assert loaded.fingerprint() == encoder.fingerprint()


def test_what_others_saved_is_loaded_from_the_hub_by_open_clip(
    member: Callable[[str], Encoder], on_the_hub: Path
) -> None:
    encoder = member("CLIP ViT")
    encoder.save(on_the_hub)
    (on_the_hub / PREPROCESS).unlink()
    loaded = encoders.load(EncoderConfig(name="hf-hub:me/mine", target_pad=1.5))
    assert loaded.preprocess == encoder.preprocess.with_target_pad(1.5)
    assert loaded.model_config == encoder.model_config


@pytest.mark.usefixtures("impatient_hub")
def test_where_the_hub_does_not_answer_an_encoder_is_not_taken_for_anothers(
    member: Callable[[str], Encoder], on_the_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be one that an earlier version has downloaded without its preprocessing; where the hub
    has said that there is none, it is another's.
    """
    encoder = member("CLIP ViT")
    encoder.save(on_the_hub)
    (on_the_hub / PREPROCESS).unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    away = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", away)
    template = f"{away}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(WeightsError, match=r"hf-hub:me/mine cannot(.|\n)*HF_HUB_OFFLINE=1"):
        encoders.load(EncoderConfig(name="hf-hub:me/mine"))
    said = on_the_hub.parents[1] / ".no_exist" / on_the_hub.name / PREPROCESS
    said.parent.mkdir(parents=True)
    said.touch()
    loaded = encoders.load(EncoderConfig(name="hf-hub:me/mine"))
    assert loaded.model_config == encoder.model_config


def test_settings_from_before_there_was_a_choice_still_pad() -> None:
    assert EncoderConfig(target_pad=1.5).padding == 1.5
    assert EncoderConfig().padding is None
    assert EncoderConfig(preprocess="auto", target_pad=1.5).padding is None


def test_an_encoder_that_an_earlier_version_saved_keeps_its_padding(
    member: Callable[[str], Encoder], tmp_path: Path
) -> None:
    encoder = member("CLIP ViT")
    encoder.save(tmp_path)
    described = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**described, "preprocess_cfg": {}}))
    mean, std = encoder.preprocess.mean, encoder.preprocess.std
    old = {"size": 32, "target_pad": 1.25, "mean": mean, "std": std}
    (tmp_path / PREPROCESS).write_text(json.dumps(old))
    assert load_saved(tmp_path).preprocess == encoder.preprocess.with_target_pad(1.25)
    (tmp_path / PREPROCESS).unlink()
    with pytest.raises(WeightsError, match="holds no encoder"):
        load_saved(tmp_path)


@pytest.mark.parametrize(
    ("name", "size", "mode", "interpolation", "mean"),
    [
        ("RN50x4-quickgelu", 288, "shortest", "bicubic", 0.48145466),
        ("PE-Core-B-16", 224, "squash", "bilinear", 0.5),
        ("MobileCLIP-S1", 256, "shortest", "bilinear", 0.0),
        ("ViT-H-14-378", 378, "squash", "bicubic", 0.48145466),
        ("raycd-demo", 64, "shortest", "bicubic", 0.48145466),
    ],
)
def test_weights_of_no_tag_are_preprocessed_as_those_of_the_models_tags(
    name: str, size: int, mode: str, interpolation: str, mean: float
) -> None:
    with torch.device("meta"):
        found = encoders.create(EncoderConfig(name=name, pretrained="")).preprocess
    assert (found.size, found.resize_mode) == ((size, size), mode)
    assert (found.interpolation, found.mean[0], found.target_pad) == (interpolation, mean, None)


def test_where_a_models_tags_differ_the_first_is_taken_and_it_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = architecture.described_by_tags("ViT-H-14")
    assert found["resize_mode"] == "shortest"
    assert "that of laion2b_s32b_b79k is taken" in capsys.readouterr().err


# ---- Hugging Face text encoders


def test_a_hugging_face_text_encoder_is_saved_with_all_that_it_needs(
    tokenizer: Path, tmp_path: Path
) -> None:
    encoder, source = new_roberta(tokenizer, tmp_path)
    encoder.save(tmp_path / "saved")
    shutil.rmtree(source)
    loaded = load_saved(tmp_path / "saved")
    assert loaded.fingerprint() == encoder.fingerprint()
    for mine, before in zip(ours(loaded), ours(encoder), strict=True):
        assert torch.equal(mine, before)
