"""CoSMo: its formulas, restated with the module's own weights, one position at a time."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from raycd.model import fusion
from tests.model.map_heads import D, batch, config, conv, head, query, unit


def content_attention(module: Any, X: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return A(Y, t) of one image: X is (C, P)."""
    C, P = X.shape
    size = C // module.heads
    value = torch.stack(
        [conv(module.value, conv(module.merge, torch.cat([X[:, p], t]))) for p in range(P)], 1
    )
    q, k = (
        torch.stack([conv(one, X[:, p]) for p in range(P)], 1) for one in (module.query, module.key)
    )
    w = module.text(t)
    rows = []
    for h in range(module.heads):
        own = slice(h * size, (h + 1) * size)
        of_text = torch.stack([X[own, p] @ w[own] for p in range(P)]) / size**0.5
        for_places = []
        for p in range(P):
            among = torch.stack([q[own, p] @ k[own, r] for r in range(P)]) / size**0.5
            weight = among.softmax(0) + of_text.softmax(0)
            for_places.append(sum(weight[r] * value[own, r] for r in range(P)))
        rows.append(torch.stack(for_places, 1))
    out = torch.cat(rows)
    return torch.stack([conv(module.output, out[:, p]) for p in range(P)], 1)


def equalised(layer: Any, t: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = (layer.weight * np.sqrt(2 / D)) @ t + layer.bias
    return found


@torch.inference_mode()
def test_cosmo_is_content_and_style_modulation() -> None:
    made, given = head("cosmo"), batch("cosmo")
    expected = []
    for image, t in zip(given.extra["map"].flatten(2), given.text_BD, strict=True):
        mean = image.mean(1, keepdim=True)
        deviation = ((image - mean).pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
        N = (image - mean) / deviation
        Y = N + made.weights[0] * content_attention(made.content[0], N, t)
        Z = Y + made.weights[1] * content_attention(made.content[1], Y, t)
        g_s, g_m = equalised(made.gates, t).sigmoid()[:, None].chunk(2)
        ga, be = (equalised(layer, t)[:, None] for layer in (made.gamma, made.beta))
        styled = (g_s * deviation + ga) * Z + g_m * mean + be
        expected.append(unit(made.project(styled.mean(1))))
    torch.testing.assert_close(query(made, given), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_cosmo_starts_as_published_and_classifies_with_logits_to_16() -> None:
    made: Any = fusion.create(config("cosmo"))
    assert made.weights.tolist() == [1, 1]
    assert made.gamma.bias.tolist() == [1] * 8
    assert made.beta.bias.tolist() == [0] * 8
    given = batch("cosmo")
    logits = 16 * query(made, given) @ unit(given.target_BD).T
    logits[0, 3] = logits[3, 0] = -torch.inf
    expected = F.cross_entropy(logits, torch.arange(4))
    torch.testing.assert_close(made.training_loss(given, 100.0), expected)
