"""Folded batch norms: the same features, and no batch norm remains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from raycd.model.encoder import fold_batch_norms


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
