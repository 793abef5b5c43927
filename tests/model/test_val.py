"""VAL: its formulas, restated with the module's own weights, one position at a time."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from raycd.model import fusion
from raycd.model.fusion.val import hinge
from tests.model.map_heads import batch, config, conv, head, query, unit


def composed(module: Any, X: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return f_i of one image: X is (C, H, W)."""
    C, H, W = X.shape
    spread = torch.cat([X, t[:, None, None].expand(-1, H, W)])
    V = F.conv2d(spread[None], module.fuse.weight, module.fuse.bias)[0]
    size = C // 2
    rows = V.flatten(1).T
    q, k, v = (
        torch.cat([layer(rows[:, :size]), layer(rows[:, size:])], 1)
        for layer in (module.query, module.key, module.value)
    )
    mixed = torch.zeros_like(rows)
    for own in (slice(0, size), slice(size, C)):
        for p in range(H * W):
            weight = (v[:, own] @ k[p, own] / size**0.5).softmax(0)
            mixed[p, own] = weight @ q[:, own]
    S = torch.stack([conv(module.output, row) for row in mixed], 1).view(C, H, W)
    channel = conv(module.channel, V.mean((1, 2))).sigmoid()
    kernel, bias = module.place[1].weight[0, 0], module.place[1].bias[0]
    average, spatial = V.mean(0), torch.zeros(H, W)
    for i in range(H):
        for j in range(W):
            for a in range(H):
                for b in range(W):
                    y, x = i + a - (H - 1) // 2, j + b - (W - 1) // 2
                    if 0 <= y < H and 0 <= x < W:
                        spatial[i, j] += kernel[a, b] * average[y, x]
    joint = channel[:, None, None] * (spatial + bias).sigmoid()
    F_i = module.residual * joint * X + module.attended * S
    found: torch.Tensor = module.project(F_i.mean((1, 2)))
    return found


@torch.inference_mode()
def test_val_composes_each_level_and_adds_them_as_units() -> None:
    made, given = head("val"), batch("val")
    expected = []
    for row, t in enumerate(given.text_BD):
        parts = [
            unit(composed(made.levels[level], given.extra[level][row], t))
            for level in ("middle", "map")
        ]
        expected.append(unit(parts[0] + parts[1]))
    torch.testing.assert_close(query(made, given), torch.stack(expected), rtol=1e-4, atol=1e-5)
    level: Any = fusion.create(config("val"))
    assert [level.levels["map"].residual.item(), level.levels["map"].attended.item()] == [1, 0]


def test_vals_hinge_takes_the_nearest_negative_beyond_the_positive() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    targets = torch.tensor([[0.96, 0.28], [1.0, 0.0], [0.6, 0.8]])
    numbers = torch.tensor([0, 1, 2])
    # Squared distances, 2 - 2 cos:   y0    y1    y2
    #                            q0  0.08  0     0.8
    #                            q1  1.44  2     0.4
    #                            q2  0.4   0.8   0
    forward = [0.0, 0.2 + 2 - 1.44, 0.0]  # q1 has nothing beyond 2: its farthest is 1.44
    backward = [0.0, 0.2 + 2 - 0.8, 0.0]  # y1 has nothing beyond 2: its farthest is 0.8
    expected = (sum(forward) + sum(backward)) / 3
    assert hinge(queries, targets, numbers).item() == pytest.approx(expected, abs=1e-6)


def test_vals_hinge_never_takes_the_same_image_as_a_negative() -> None:
    queries, targets = torch.randn(2, 3), torch.randn(1, 3).expand(2, 3)
    assert hinge(queries, targets, torch.tensor([5, 5])).item() == 0
