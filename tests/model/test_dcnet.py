from typing import Any

import numpy as np
import pytest
import torch

from raycd.model import fusion
from raycd.model.fusion import dcnet
from tests.model.batches import batch
from tests.model.formulas import (
    Array,
    Weights,
    cross_entropy,
    fc,
    lively,
    part,
    relu,
    unit,
    weights,
)
from tests.model.test_tirg import gated_residual

D = 6


def head() -> fusion.Head:
    torch.manual_seed(0)
    made = fusion.create(fusion.HeadConfig("dcnet", D))
    lively(made)
    return made


# ---- the formulas, in numpy


def image(given: Weights, x: Array) -> Array:
    return given["image_scale"] * unit(x)


def text(given: Weights, t: Array) -> Array:
    return given["text_scale"] * unit(relu(fc(given, "text.0", t)))


def composed(given: Weights, x: Array, t: Array, *, training: bool) -> Array:
    both = np.concatenate([x, t, x * t], axis=1)
    return unit(gated_residual(part(given, "compose"), x, both, training=training))


def difference(given: Weights, x: Array, y: Array) -> Array:
    """Return e (D,) of one pair."""
    u = relu(fc(given, "fuse_reference.0", np.concatenate([x * y, x])))
    v = relu(fc(given, "fuse_candidate.0", np.concatenate([x * y, y])))
    e = relu(fc(given, "difference.0", np.concatenate([x, v - u, y])))
    return given["text_scale"] * unit(e)


def values(given: fusion.HeadBatch) -> list[Any]:
    return [f.double().numpy() for f in (given.image_BD, given.text_BD, given.target_BD)]


@pytest.mark.parametrize("training", [False, True])
def test_the_query_is_tirgs_of_image_text_and_their_product(training: bool) -> None:
    made, given = head().train(training), batch(5, D)
    kept, (x, t, _) = weights(made), values(given)
    found = made(given.image_BD, given.text_BD).detach().double().numpy()
    expected = composed(kept, image(kept, x), text(kept, t), training=training)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_correction_compares_each_pairs_difference_with_the_text() -> None:
    made, given = head().eval(), batch(3, D)
    candidates = torch.randn(3, 4, D, generator=torch.Generator().manual_seed(9))
    kept, (x, t, _) = weights(made), values(given)
    x, t, y = image(kept, x), text(kept, t), image(kept, candidates.double().numpy())
    expected = [[difference(kept, x[b], y[b, n]) @ t[b] for n in range(4)] for b in range(3)]
    found = made.rerank(given.image_BD, given.text_BD, candidates).detach().double().numpy()
    np.testing.assert_allclose(found, np.array(expected) / kept["image_scale"] ** 2, rtol=1e-4)


def test_cosine_plus_correction_orders_images_as_the_papers_sum_of_log_softmaxes() -> None:
    made, given = head().eval(), batch(3, D)
    gallery = torch.randn(20, D, generator=torch.Generator().manual_seed(9))
    kept, (x, t, _) = weights(made), values(given)
    x, t, y = image(kept, x), text(kept, t), image(kept, gallery.double().numpy())
    f = kept["image_scale"] * composed(kept, x, t, training=False)
    composition = f @ y.T
    correction = np.array([[difference(kept, x[i], b) @ t[i] for b in y] for i in range(3)])
    paper = sum(s - np.log(np.exp(s).sum(1, keepdims=True)) for s in (composition, correction))
    query = made(given.image_BD, given.text_BD)
    cosine = query @ torch.nn.functional.normalize(gallery, dim=-1).T
    ours = cosine + made.rerank(given.image_BD, given.text_BD, gallery.expand(3, 20, D))
    assert ours.argsort(dim=1).tolist() == np.argsort(paper, axis=1).tolist()
    assert ours.argsort(dim=1).tolist() != cosine.argsort(dim=1).tolist()


@pytest.mark.parametrize("block", [32, 3])
def test_the_loss_is_of_composition_correction_and_both(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcnet, "BLOCK", block)
    made, given = head().train(), batch(5, D, [0, 1, 2, 1, 4])
    kept, (x, t, y) = weights(made), values(given)
    x, t, y = image(kept, x), text(kept, t), image(kept, y)
    own, eye = np.arange(5), np.eye(5)
    same = given.target_B.numpy()[:, None] == given.target_B.numpy()
    f = composed(kept, x, t, training=True)
    scale = kept["image_scale"] ** 2
    composition = cross_entropy(scale * f @ unit(y).T - 0.3 * eye, own, same)
    e = np.array([[difference(kept, a, b) for b in y] for a in x])
    correction_scores = np.einsum("bnd,bd->bn", e, t) - 0.3 * eye
    others = own[:, None] // block != own // block
    correction = cross_entropy(correction_scores, own, same | others)
    both = composed(kept, x, (e[own, own] + t) / 2, training=True)
    joint = cross_entropy(scale * both @ f.T - 0.3 * eye, own, same)
    expected = composition + correction + 0.5 * joint
    assert made.training_loss(given, 100.0).item() == pytest.approx(expected, rel=1e-4)


def test_both_scales_start_at_five() -> None:
    fresh = dict(fusion.create(fusion.HeadConfig("dcnet", D)).named_parameters())
    assert [fresh[name].item() for name in ("image_scale", "text_scale")] == [5.0, 5.0]
