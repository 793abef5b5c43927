"""Encoders of other packages, by entry points: a toy package, installed for the test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from raycd.config import EncoderConfig
from raycd.errors import ConfigError, WeightsError
from raycd.model import encoder as encoders
from raycd.model.encoder import load_saved
from tests.packages import TOY, install

FRAMES = """

class Frames(nn.Conv3d):
    def __init__(self):
        super().__init__(3, 6, 1)

    def forward(self, images):
        return super().forward(images[:, :, None]).mean(dim=(2, 3, 4))
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the toy package."""
    points = "[raycd.encoders]\ntoy = toy_encoder\nbroken = toy_encoder_that_is_not_there\n"
    install(monkeypatch, tmp_path / "site", "toy_encoder", TOY, points)
    return tmp_path / "site"


def test_an_installed_package_adds_an_encoder_that_trains_is_saved_and_loaded(
    installed: Path, tmp_path: Path
) -> None:
    encoder = encoders.load(EncoderConfig(name="toy", pretrained="3"))
    assert (encoder.dim, encoder.preprocess.size) == (6, (4, 6))
    encoder.trainable("image", grad_checkpointing=True)
    trained = {name for name, value in encoder.clip.named_parameters() if value.requires_grad}
    assert trained == {"visual.weight", "visual.bias"}
    encoder.save(tmp_path / "saved")
    again = load_saved(tmp_path / "saved")
    assert again.fingerprint() == encoder.fingerprint()
    assert (
        encoders.load(EncoderConfig(name="toy", pretrained="0")).fingerprint()
        != encoder.fingerprint()
    )
    pixels = again.preprocess(Image.new("RGB", (40, 9), "red"))[None]
    texts = ["is blue", "has long and wide sleeves"]
    assert [again.truncates(text) for text in texts] == [False, True]
    with torch.inference_mode():
        for one in (encoder, again):
            assert one.encode_images(pixels).shape == (1, 6)
        assert torch.equal(again.encode_images(pixels), encoder.encode_images(pixels))
        assert torch.equal(
            again.encode_tokens(again.tokenize(texts)),
            encoder.encode_tokens(encoder.tokenize(texts)),
        )


def test_target_pad_is_followed_and_kept_in_the_saved_folder(
    installed: Path, tmp_path: Path
) -> None:
    own, padded = (
        encoders.load(EncoderConfig.model_validate({"name": "toy", "pretrained": "3 8"} | settings))
        for settings in ({}, {"preprocess": "target_pad", "target_pad": 1.5})
    )
    assert padded.preprocess == own.preprocess.with_target_pad(1.5)
    tall = Image.new("RGB", (20, 60), "red")
    assert not torch.equal(padded.preprocess(tall), own.preprocess(tall))
    assert padded.fingerprint() != own.fingerprint()
    padded.save(tmp_path / "saved")
    again = load_saved(tmp_path / "saved")
    assert again.preprocess == padded.preprocess
    assert again.fingerprint() == padded.fingerprint()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preprocess": "target_pad"}, r"for square images\n.*4 x 6 pixels\n.*preprocess auto"),
        ({"configs": "my/configs"}, r"of open_clip, and toy is none\n.*my/configs(.|\n)*leave it"),
    ],
)
def test_a_setting_that_it_cannot_follow_is_an_error(
    settings: dict[str, str], message: str, installed: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        encoders.load(EncoderConfig.model_validate({"name": "toy", "pretrained": "3"} | settings))


def test_a_saved_encoder_whose_package_is_gone_says_so(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders.load(EncoderConfig(name="toy", pretrained="0")).save(tmp_path / "saved")
    monkeypatch.setattr(
        "sys.path", [path for path in __import__("sys").path if path != str(installed)]
    )
    with pytest.raises(WeightsError, match=r"not installed(.|\n)*toy"):
        load_saved(tmp_path / "saved")


def test_a_package_that_cannot_be_imported_is_named(installed: Path) -> None:
    with pytest.raises(WeightsError, match=r"encoder broken cannot be loaded(.|\n)*of toy_encoder"):
        encoders.load(EncoderConfig(name="broken"))


def test_a_package_whose_code_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "[raycd.encoders]\nfailing = failing_encoder\n"
    install(monkeypatch, tmp_path / "site", "failing_encoder", "1 / 0", points)
    with pytest.raises(WeightsError, match=r"failing cannot be loaded\n.*ZeroDivisionError"):
        encoders.load(EncoderConfig(name="failing"))


def test_two_packages_with_an_encoder_of_the_same_name_are_told_apart(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "[raycd.encoders]\ntoy = second_encoder\n"
    install(monkeypatch, tmp_path / "second", "second_encoder", TOY, points)
    with pytest.raises(WeightsError, match=r"several packages add the encoder toy\n.*second_enc"):
        encoders.load(EncoderConfig(name="toy", pretrained="3"))


def test_an_encoder_of_tied_weights_and_a_conv3d_is_saved_and_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = "self.visual, self.text = Frames(), nn.Linear(4, dim)\n        self.tied = self.text"
    code = TOY.replace("self.visual, self.text = nn.Linear(3, dim), nn.Linear(4, dim)", layers)
    code = code.replace("self.visual(images.mean(dim=(2, 3)))", "self.visual(images)") + FRAMES
    points = "[raycd.encoders]\ntied = tied_encoder\n"
    install(monkeypatch, tmp_path / "site", "tied_encoder", code, points)
    encoder = encoders.load(EncoderConfig(name="tied", pretrained="3"))
    encoder.save(tmp_path / "saved")
    again = load_saved(tmp_path / "saved")
    assert again.clip.tied is again.clip.text
    assert again.fingerprint() == encoder.fingerprint()
    pixels = again.preprocess(Image.new("RGB", (40, 9), "red"))[None]
    assert torch.equal(again.encode_images(pixels), encoder.encode_images(pixels))


def test_a_slip_in_the_name_is_told_the_packages_encoders_too(installed: Path) -> None:
    with pytest.raises(WeightsError, match=r"names no model(.|\n)*toy"):
        encoders.load(EncoderConfig(name="toyy", pretrained="x.safetensors"))
