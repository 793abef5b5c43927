"""Operations of an encoder, which a benchmark states its speeds in."""

import pytest
import torch
from torch import nn

from jobs.benchmarks import rates
from jobs.benchmarks.rates import Work
from raycd.config import EncoderConfig
from raycd.model.encoder import create


def test_products_and_convolutions_are_counted_fused_layers_too() -> None:
    with torch.inference_mode():
        assert rates.counted(lambda: nn.Linear(30, 40)(torch.zeros(5, 30))) == 2 * 5 * 30 * 40
        convolution = nn.Conv2d(3, 8, kernel_size=4, stride=4)
        seen = rates.counted(lambda: convolution(torch.zeros(1, 3, 16, 16)))
        assert seen == 2 * 8 * 3 * 4 * 4 * (4 * 4)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
        # Four projections, the scores and what they weigh, and two linear layers
        products = 10 * 32 * 32 * 4 + 2 * 10 * 10 * 32 + 2 * 10 * 32 * 64
        assert rates.counted(lambda: layer(torch.zeros(1, 10, 32))) == 2 * products


def test_a_triplet_is_two_images_and_a_text_there_and_back() -> None:
    work = Work.of(create(EncoderConfig(name="ViT-B-32", pretrained="")))
    # Radford et al. give 4.4 billion multiplications and additions for the image
    assert work.image == pytest.approx(2 * 4.4e9, rel=0.02)
    assert work.text == pytest.approx(2 * 2.9e9, rel=0.05)
    assert work.triplet == 3 * (2 * work.image + work.text)


def test_a_speed_is_stated_as_a_share_of_the_products_rate() -> None:
    assert rates.shares("x", 3e12, 12e12) == {
        "x: TFLOP/s": 3.0,
        "x: share of the product's rate": 0.25,
    }
    assert rates.product_rate("cpu") > 1e9
