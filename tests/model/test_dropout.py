"""The fast dropout does what torch's own does."""

import pytest
import torch
from torch import nn

from raycd.model.fusion.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_a_share_p_is_zeroed_and_the_rest_scaled_up(p: float) -> None:
    torch.manual_seed(0)
    kept = Dropout(p)(torch.ones(2000, 1001))
    assert (kept == 0).double().mean().item() == pytest.approx(p, abs=0.002)
    assert kept[kept != 0].unique().tolist() == pytest.approx([1 / (1 - p)])
    columns = (kept == 0).double().mean(0)
    assert columns.min() > p - 0.06  # no column is left out of it
    assert columns.max() < p + 0.06


def test_the_seed_decides_which() -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        zeroed: torch.Tensor = Dropout(0.5)(torch.ones(64, 7))
        return zeroed

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_gradients_flow_through_what_is_kept() -> None:
    torch.manual_seed(0)
    features = torch.ones(50, 3, requires_grad=True)
    kept = Dropout(0.5)(features)
    kept.sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, kept.detach())


@pytest.mark.parametrize("module", [Dropout(0.5).eval(), Dropout(0.0)])
def test_without_training_or_p_nothing_changes(module: nn.Module) -> None:
    features = torch.randn(4, 5)
    assert torch.equal(module(features), features)


def test_it_takes_any_shape_and_bf16() -> None:
    assert Dropout(0.3)(torch.ones(3, 1, 5)).shape == (3, 1, 5)
    assert Dropout(0.3)(torch.ones(0, 4)).shape == (0, 4)
    assert Dropout(0.3)(torch.ones(7, dtype=torch.bfloat16)).dtype == torch.bfloat16
