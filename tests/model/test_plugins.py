"""Encoders of other packages, by entry points: a toy package, installed for the test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from raycd.config import EncoderConfig
from raycd.errors import WeightsError
from raycd.model import encoder as encoders
from raycd.model.encoder import load_saved

TOY = '''
"""An encoder that knows the mean colour of a picture, and the lengths of words."""

import torch
from torch import nn

from raycd.data.preprocess import Preprocess
from raycd.model.plugins import Parts


class Words:
    files = {"words.txt": b"four"}
    padding = 0

    def __call__(self, texts):
        rows = [[len(word) for word in text.split()][:4] for text in texts]
        return torch.tensor([row + [0] * (4 - len(row)) for row in rows])

    def truncates(self, text):
        return len(text.split()) > 4


class Toy(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.visual, self.text = nn.Linear(3, dim), nn.Linear(4, dim)

    def encode_image(self, images, normalize=False):
        return self.visual(images.mean(dim=(2, 3)))

    def encode_text(self, tokens, normalize=False):
        return self.text(tokens.float())

    def set_grad_checkpointing(self, enable=True):
        pass


def load(config):
    torch.manual_seed(int(config.pretrained or 0))
    return build({"embed_dim": 6}, Words.files)


def build(model_config, files, folder=None):
    assert files == Words.files
    preprocess = Preprocess((4, 6), (0.5,) * 3, (0.5,) * 3, resize_mode="squash")
    return Parts(Toy(model_config["embed_dim"]), Words(), preprocess, dict(model_config))
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the toy package as pip would have it: a module, and its metadata beside it."""
    site = tmp_path / "site"
    metadata = site / "toy_encoder-0.1.dist-info"
    metadata.mkdir(parents=True)
    (site / "toy_encoder.py").write_text(TOY)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-encoder\nVersion: 0.1\n")
    points = "[raycd.encoders]\ntoy = toy_encoder\nbroken = toy_encoder_that_is_not_there\n"
    (metadata / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(site))
    return site


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
    with pytest.raises(WeightsError, match="package of the encoder broken cannot be imported"):
        encoders.load(EncoderConfig(name="broken"))


def test_a_slip_in_the_name_is_told_the_packages_encoders_too(installed: Path) -> None:
    with pytest.raises(WeightsError, match=r"names no model(.|\n)*toy"):
        encoders.load(EncoderConfig(name="toyy", pretrained="x.safetensors"))
