from typing import Any

import numpy as np
import pytest
import torch

from raycd.model import fusion
from tests.model.batches import batch
from tests.model.formulas import (
    Array,
    Weights,
    batch_norm,
    cross_entropy,
    fc,
    lively,
    part,
    relu,
    unit,
    weights,
)

D = 7


def head(dropout: float = 0.0) -> fusion.Head:
    torch.manual_seed(0)
    made = fusion.create(fusion.HeadConfig("composeae", D, dropout=dropout))
    lively(made)
    return made


# ---- the formulas, in numpy


def mapping(given: Weights, x: Array, training: bool) -> Array:
    x = relu(batch_norm(given, "0", x, training=training))
    return fc(given, "4", relu(fc(given, "2", x)))


def rotated(
    given: Weights, x: Array, t: Array, sign: int, training: bool
) -> tuple[Array, Array, Array, Array]:
    p = relu(fc(given, "image.1", batch_norm(given, "image.0", x, training=training)))
    p = fc(given, "image.4", p)
    theta = relu(fc(given, "angles.1", batch_norm(given, "angles.0", t, training=training)))
    theta = fc(given, "angles.3", theta)
    turned = p * np.exp(1j * sign * theta)
    return p, theta, turned.real, turned.imag


def pooled(row: Array, cells: int) -> Array:
    """Return the maxima of `cells` windows that cover a row, as adaptive pooling cuts them."""
    edges = [(n * len(row) // cells, -(-(n + 1) * len(row) // cells)) for n in range(cells)]
    return np.array([row[first:last].max() for first, last in edges])


def convolved(given: Weights, channels: Array) -> Array:
    """Return conv(5 -> 64, 3, padding 1) of channels (5, D), pooled to 16 and flattened."""
    kernel, bias = given["0.weight"], given["0.bias"]
    padded = np.pad(channels, ((0, 0), (1, 1)))
    out = np.stack([np.tensordot(kernel, padded[:, i : i + 3], axes=2) + bias for i in range(D)])
    return np.concatenate([pooled(row, 16) for row in out.T])


def composed(given: Weights, x: Array, t: Array, *, training: bool, sign: int = 1) -> Array:
    _, _, re, im = rotated(part(given, "rotate"), x, t, sign, training)
    rho = mapping(part(given, "rho"), np.concatenate([re, im], axis=1), training)
    p, theta, re, im = rotated(part(given, "rotate_conv"), x, t, sign, training)
    rows = np.stack(
        [
            convolved(part(given, "conv"), np.stack(five))
            for five in zip(p, theta, x, re, im, strict=True)
        ]
    )
    conv = mapping(part(given, "rho_conv"), rows, training)
    return given["rho_weight"] * rho + given["conv_weight"] * conv


def values(given: fusion.HeadBatch) -> list[Any]:
    return [f.double().numpy() for f in (given.image_BD, given.text_BD, given.target_BD)]


@pytest.mark.parametrize("training", [False, True])
def test_the_query_is_the_rotated_image_mapped_back_in_two_ways(training: bool) -> None:
    made, given = head().train(training), batch(4, D)
    x, t, _ = values(given)
    found = made(given.image_BD, given.text_BD).detach().double().numpy()
    expected = unit(composed(weights(made), x, t, training=training))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("references", [None, [0, 1, 2, 0]])
def test_the_loss_has_four_terms(references: list[int] | None) -> None:
    made, given = head().train(), batch(4, D, [0, 1, 2, 1])
    numbers, sources = given.target_B.numpy(), np.array(references or range(4))
    if references:
        given.image_BD[3] = given.image_BD[0]
        given = fusion.HeadBatch(
            *(given.image_BD, given.text_BD, given.target_BD, given.target_B),
            image_B=torch.tensor(references),
        )
    kept, (x, t, y) = weights(made), values(given)
    f, back = (
        composed(kept, first, t, training=True, sign=sign) for first, sign in ((x, 1), (y, -1))
    )
    scale, own = kept["scale"] ** 2, np.arange(4)
    base = cross_entropy(scale * unit(f) @ unit(y).T, own, numbers[:, None] == numbers)
    symmetry = cross_entropy(scale * unit(back) @ unit(x).T, own, sources[:, None] == sources)
    image = np.mean((mapping(part(kept, "decode_image"), f, True) - x) ** 2)
    text = np.mean((mapping(part(kept, "decode_text"), f, True) - t) ** 2)
    expected = base + 0.1 * image + 0.1 * text + 0.01 * symmetry
    assert min(base, symmetry, image, text) > 0.1
    assert made.training_loss(given, 100.0).item() == pytest.approx(expected, rel=1e-4)


def test_the_numbers_are_those_of_the_authors_code_at_first() -> None:
    fresh = dict(fusion.create(fusion.HeadConfig("composeae", D)).named_parameters())
    names = ("scale", "rho_weight", "conv_weight")
    assert [fresh[name].item() for name in names] == [4.0, 10.0, 1.0]


def test_dropout_acts_on_the_image_in_training_only() -> None:
    made, given = head(dropout=0.5), batch(4, D)
    features = given.image_BD, given.text_BD
    assert torch.equal(made.eval()(*features), made(*features))
    assert not torch.equal(made.train()(*features), made(*features))
