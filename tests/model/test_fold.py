"""Folded batch norms: the same features, and no batch norm remains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from raycd.model.folding import fold_batch_norms


def test_an_encoder_gives_the_same_features_without_its_batch_norms(
    new_encoder: Callable[[], Any],
) -> None:
    encoder = new_encoder().eval()
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        before = encoder.encode_images(pixels)
    fold_batch_norms(encoder.clip)
    with torch.inference_mode():
        after = encoder.encode_images(pixels)
    assert torch.allclose(before, after, atol=1e-5 * float(before.abs().max()))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())


def test_a_batch_norm_that_follows_no_convolution_stays() -> None:
    module = nn.Sequential(
        nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)
    ).eval()
    fold_batch_norms(module)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in module) == 2


class PreActivation(nn.Module):
    """A block with the names of CLIP's ResNets, in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        between = self.conv1(self.bn1(images).relu())
        found: torch.Tensor = images + self.conv2(self.bn2(between).relu())
        return found


class Backwards(nn.Sequential):
    """A Sequential that is none."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for part in reversed(self):
            images = part(images)
        return images


class Centred(nn.Conv2d):
    """A convolution with more in it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images - images.mean())


@pytest.mark.parametrize(
    "module",
    [
        PreActivation(),
        Backwards(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Sequential(Centred(3, 3, 1), nn.BatchNorm2d(3)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_only_looks_like_a_convolution_and_its_batch_norm_keeps_its_features(
    module: nn.Module,
) -> None:
    for part in module.eval().modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
            part.running_mean.normal_()
    images = torch.randn(2, 3, 4, 4)
    before = module(images)
    fold_batch_norms(module)
    torch.testing.assert_close(module(images), before)
