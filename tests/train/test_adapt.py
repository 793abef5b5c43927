"""The adaptation to titles: what is shown, its loss, and that it brings images and titles together.

That any number of workers takes the steps of one is in test_workers.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from raycd.config import Config
from raycd.model.encoder import Encoder
from raycd.train.adapt import Adapt
from raycd.train.loop import Loop, Schedule
from raycd.train.task import Silence

COLOURS = ["red", "blue", "green", "yellow", "black", "white", "orange", "purple"]
TEXTS = {
    "i0": ("red one, red", "red one", "red"),
    "i1": ("blue",),
    "i2": ("red",),
    **{f"i{n}": (COLOURS[n],) for n in range(3, 8)},
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, found = tmp_path_factory.mktemp("titles"), {}
    for n, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 40), colour).save(folder / f"{n}.png")
        found[f"i{n}"] = str(folder / f"{n}.png")
    return found


@pytest.fixture
def task(new_encoder: Callable[[], Encoder], paths: dict[str, str]) -> Adapt:
    config = Config.model_validate({"adapt": {"lr": 3e-3, "logit_scale": 10.0}})
    encoder = new_encoder().train()
    pixels = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():  # untrained statistics would tell no image from another
        for _ in range(4):
            encoder.encode_images(pixels)
    return Adapt(encoder, TEXTS, paths, config)


def test_over_the_epochs_an_image_shows_each_of_its_texts(task: Adapt) -> None:
    shown = set()
    for epoch in range(20):
        [batch] = task.batches(epoch, [np.arange(8)])
        shown.add(str(batch.tokens[0].tolist()))
        assert torch.equal(batch.tokens[1], task.encoder.tokenize(["blue"])[0])
    assert shown == {str(line.tolist()) for line in task.encoder.tokenize(list(TEXTS["i0"]))}


def test_images_without_a_text_or_a_readable_file_are_left_out(
    new_encoder: Callable[[], Encoder], paths: dict[str, str]
) -> None:
    there = {key: path for key, path in paths.items() if key != "i3"}
    found = Adapt(new_encoder(), {"i1": ("blue",), "i3": ("yellow",)}, there, Config())
    assert list(found.texts) == ["i1"]


def test_the_cosines_have_the_scale_that_the_encoder_learnt_unless_one_is_given(
    new_encoder: Callable[[], Encoder], paths: dict[str, str], task: Adapt
) -> None:
    encoder = new_encoder()
    with torch.no_grad():
        encoder.clip.logit_scale.fill_(2.0)
    assert Adapt(encoder, TEXTS, paths, Config()).logit_scale == pytest.approx(np.exp(2.0))
    assert task.logit_scale == 10.0  # whose loss is the next test's
    encoder.clip.logit_scale = None  # as in an encoder of another package
    assert Adapt(encoder, TEXTS, paths, Config()).logit_scale == 100.0


def test_the_loss_is_symmetric_and_images_of_one_text_are_no_negatives(task: Adapt) -> None:
    """Rows 1, 2 and 3, and row 2 again: blue, red, yellow, red."""
    [batch] = task.batches(0, [np.array([1, 2, 3, 2])])
    with torch.no_grad():
        found = float(task.loss(task.module, batch))
        image, text = task.module(batch.pixels, batch.tokens)
    logits = 10.0 * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    same = torch.zeros(4, 4, dtype=torch.bool)
    same[1, 3] = same[3, 1] = True
    own = torch.arange(4)
    expected = [
        float(F.cross_entropy(way.masked_fill(same, -torch.inf), own)) for way in (logits, logits.T)
    ]
    assert found == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_it_brings_images_and_their_titles_together(task: Adapt) -> None:
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    loop = Loop(task, Schedule(30, 8, 3e-3, 0), bar=lambda total, start: Silence())
    history = loop.run()
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    moved = {
        name.split(".")[2]
        for name, value in task.module.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert {"visual", "transformer", "token_embedding"} <= moved
    assert "logit_scale" not in moved
