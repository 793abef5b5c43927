"""An encoder whose weights are held in bf16 gives what autocast gives, of each form of tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycd.config import EncoderConfig
from raycd.model import encoder as encoders
from raycd.model import precision
from raycd.model.embed import frozen
from raycd.model.encoder import Encoder
from raycd.model.maps import encode_images
from tests.families import families, new, write_tokenizer
from tests.packages import TOY, install

TEXTS = [
    f"is {colour} and has long sleeves" for colour in ("red", "blue", "green", "dark", "light")
]
Pair = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    """Return a function that makes a family's tiny member, with norms as training leaves them.

    Fresh ones have weights of 1, which bf16 does not round.
    """
    folder = tmp_path_factory.mktemp("casting")
    write_tokenizer(folder)

    def make(name: str) -> Encoder:
        encoder = new(families(folder)[name], folder)
        with torch.no_grad():
            for module in encoder.modules():
                if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                    module.weight.mul_(1 + 0.3 * torch.randn_like(module.weight))
                    module.bias.add_(0.2 * torch.randn_like(module.bias))
        encoder.trainable("none")
        return encoder

    return make


@torch.inference_mode()
def features(encoder: Encoder) -> Pair:
    torch.manual_seed(2)
    pixels = torch.randint(0, 256, (16, *encoder.preprocess.size, 3), dtype=torch.uint8)
    return encoder.encode_images(pixels), encoder.encode_tokens(encoder.tokenize(TEXTS))


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the mean relative error of features."""
    return float(((found - exact).norm(dim=-1) / exact.norm(dim=-1)).mean())


@contextmanager
def as_on_gpus() -> Iterator[None]:
    """Take from torch a shorter way of attention, which autocast on GPUs does not take either."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("name", ["CLIP ResNet", "CLIP ViT", "CLIPA", "SigLIP2", "CoCa"])
def test_weights_held_in_bf16_come_as_close_to_fp32_as_autocast(
    trained: Callable[[str], Encoder], name: str
) -> None:
    encoder = trained(name)
    cast, held = deepcopy(encoder), frozen(deepcopy(encoder), "bf16", "cpu")
    cast.precision = "bf16"
    with as_on_gpus():
        exact, by_autocast, found = features(encoder), features(cast), features(held)
    images = features(held)[0] if held.images_in_bf16 else found[0]  # without autocast, on GPUs too
    for one, other, right, most in (
        (found[0], by_autocast[0], exact[0], 1.001),
        (found[1], by_autocast[1], exact[1], 1.001),
        (images, by_autocast[0], exact[0], 1.25),  # the shorter way rounds elsewhere
    ):
        assert one.dtype == torch.float32
        assert 0 < error(one, right) < 0.015
        assert torch.cosine_similarity(one, right).min() > 0.9998
        assert error(one, right) <= most * error(other, right)


def test_what_must_not_be_rounded_stays_fp32(trained: Callable[[str], Encoder]) -> None:
    encoder = frozen(trained("CLIP ResNet"), "bf16", "cpu")
    types = {name: value.dtype for name, value in encoder.clip.state_dict().items()}
    assert types["visual.layer1.0.bn1.running_var"] == torch.float32
    assert types["visual.layer1.0.conv1.weight"] == torch.bfloat16
    assert types["transformer.resblocks.0.mlp.c_fc.weight"] == torch.bfloat16
    for name in (
        "logit_scale",
        "positional_embedding",
        "ln_final.weight",
        "token_embedding.weight",
    ):
        assert types[name] == torch.float32


def test_weights_that_are_held_already_are_left_alone(trained: Callable[[str], Encoder]) -> None:
    encoder = frozen(trained("CLIP ViT"), "bf16", "cpu")
    hooks = [len(module._forward_hooks) for module in encoder.modules()]
    before = features(encoder)[0]
    assert sum(hooks) > 0
    again = frozen(encoder, "bf16", "cpu")
    assert [len(module._forward_hooks) for module in again.modules()] == hooks
    assert torch.equal(features(again)[0], before)


def test_maps_are_read_of_held_weights_too(trained: Callable[[str], Encoder]) -> None:
    encoder = trained("CLIP ViT")
    pixels = torch.randint(0, 256, (4, *encoder.preprocess.size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        _, exact = encode_images(encoder, pixels, ["map", "middle"])
        _, found = encode_images(frozen(encoder, "bf16", "cpu"), pixels, ["map", "middle"])
    for need in ("map", "middle"):
        assert found[need].dtype == torch.float32
        torch.testing.assert_close(found[need], exact[need], rtol=0.05, atol=0.05)


def test_an_encoder_of_another_package_computes_in_fp32_what_it_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = "self.visual(images.mean(dim=(2, 3)))"
    code = TOY.replace(
        f"        return {tower}",
        f"""
        with torch.autocast(images.device.type, enabled=False):
            return {tower.replace("images", "images.float()")}""",
    )
    points = "[raycd.encoders]\nexact = exact_encoder\n"
    install(monkeypatch, tmp_path, "exact_encoder", code, points)
    encoder = encoders.load(EncoderConfig(name="exact", pretrained="3"))
    pixels = torch.randint(0, 256, (2, *encoder.preprocess.size, 3), dtype=torch.uint8)
    tokens = encoder.tokenize(TEXTS)
    with torch.inference_mode():
        exact = encoder.encode_images(pixels), encoder.encode_tokens(tokens)
        held = frozen(encoder, "bf16", "cpu")
        assert torch.equal(held.encode_images(pixels), exact[0])
        assert 0 < error(held.encode_tokens(tokens), exact[1]) < 0.015  # by autocast


def test_auto_is_fp32_on_a_cpu_and_leaves_what_was_chosen() -> None:
    cpu = torch.device("cpu")
    assert [precision.of(kind, cpu) for kind in ("auto", "fp32", "bf16")] == [
        "fp32",
        "fp32",
        "bf16",
    ]


def test_fp32_on_a_gpu_is_not_rounded_to_tf32() -> None:
    cudnn: Any = torch.backends.cudnn
    assert cudnn.allow_tf32
    try:
        precision.use("bf16", torch.device("cuda"))
        precision.use("fp32", torch.device("cpu"))
        assert cudnn.allow_tf32
        assert precision.use("fp32", torch.device("cuda")) == "fp32"
        assert not cudnn.allow_tf32
    finally:
        cudnn.allow_tf32 = True


@pytest.mark.parametrize("supported", [True, False])
def test_auto_is_bf16_on_a_gpu_that_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    asked = []

    def answer(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
    assert precision.of("auto", torch.device("cuda")) == ("bf16" if supported else "fp32")
    assert asked == [False]
