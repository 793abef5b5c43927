"""CLVC-Net: its formulas, restated with the module's own weights, for each position and word."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from raycd.model.fusion.clvc_net import mutual
from raycd.model.loss import batch_classification_loss
from tests.model.map_heads import D, batch, gem, head, query, unit


def inception(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return the block's branches of one image (C, H, W), or one text (C, L)."""
    pool: Callable[..., torch.Tensor] = F.avg_pool2d if rows.ndim == 3 else F.avg_pool1d
    b = module.branches
    one = b[0](rows[None])
    two = b[1][1](b[1][0](rows[None]).relu())
    three = b[2][2](b[2][1](b[2][0](rows[None]).relu()).relu())
    four = b[3][0](pool(rows[None], 3, 1, 1))
    return torch.cat([one, two, three, four], 1)[0]


@torch.inference_mode()
def test_clvc_net_composes_by_places_and_by_words() -> None:
    made, given = head("clvc_net"), batch("clvc_net")
    for row in range(2):
        X, words = given.extra["map"][row], given.extra["tokens"][row]
        words = words[given.extra["token_mask"][row]]
        K = made.local_key(X[None])[0]
        said = torch.zeros_like(K)
        for i in range(2):
            for j in range(3):
                weight = (words @ K[:, i, j] / 6**0.5).softmax(0)
                said[:, i, j] = weight @ words
        both = torch.cat([K, said])
        F_ = inception(made.local_gamma, both) * X + inception(made.local_beta, both)
        f = made.local_project(gem(made.local_pool, F_.flatten(1)))
        K = made.global_key(X[None])[0].flatten(1)
        v = torch.stack([(K * (word @ K / 4).softmax(0)).sum(1) for word in words], 1)
        both = torch.cat([words.T, v])
        G = inception(made.global_gamma, both) * v + inception(made.global_beta, both)
        g = made.global_project(gem(made.global_pool, G))
        expected = unit(unit(f) + unit(g))
        torch.testing.assert_close(query(made, given)[row], expected, rtol=1e-4, atol=1e-5)


def test_clvc_nets_loss_has_its_eight_terms() -> None:
    made, given = head("clvc_net"), batch("clvc_net")
    extra = (given.extra["map"], given.extra["tokens"], given.extra["token_mask"])
    f, F_ = made.local(*extra)
    g = made.global_(*extra)
    y = unit(given.target_BD)
    expected = (F_ - given.target_extra["map"]).pow(2).mean()
    for own, other, scale in ((f, g, made.local_scale), (g, f, made.global_scale)):
        own, other = unit(own), unit(other).detach()
        expected = expected + batch_classification_loss(own, y, given.target_B, scale.item())
        expected = expected + (own - other).pow(2).mean()
        p, q = (10 * other @ y.T).softmax(1), (10 * own @ y.T).softmax(1)
        expected = expected + (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(made.training_loss(given, 100.0), expected)


def test_a_network_does_not_teach_itself_by_what_it_teaches() -> None:
    own, other = (unit(torch.randn(3, D)).requires_grad_() for _ in range(2))
    loss = mutual(own, other.detach(), torch.randn(3, D))
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
    assert own.grad is not None
    assert other.grad is None
