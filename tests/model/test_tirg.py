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
    sigmoid,
    unit,
    weights,
)

D = 6


def gated_residual(given: Weights, x: Array, both: Array, *, training: bool) -> Array:
    """Return TIRG's f of the image and of what is concatenated, before normalisation."""
    g = fc(given, "gate.2", relu(batch_norm(given, "gate.0", both, training=training)))
    r = relu(batch_norm(given, "residual.0", both, training=training))
    r = fc(given, "residual.4", relu(fc(given, "residual.2", r)))
    return given["gate_weight"] * sigmoid(g) * x + given["residual_weight"] * r


def head() -> fusion.Head:
    torch.manual_seed(0)
    made = fusion.create(fusion.HeadConfig("tirg", D))
    lively(made)
    return made


@pytest.mark.parametrize("training", [False, True])
def test_the_query_is_the_gated_image_plus_the_residual(training: bool) -> None:
    made, given = head().train(training), batch(5, D)
    x, t = given.image_BD.double().numpy(), given.text_BD.double().numpy()
    f = gated_residual(
        part(weights(made), "compose"), x, np.concatenate([x, t], axis=1), training=training
    )
    found = made(given.image_BD, given.text_BD).detach().double().numpy()
    np.testing.assert_allclose(found, unit(f), rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_classification_of_the_batch_at_the_learned_scale() -> None:
    made, given = head().train(), batch(5, D, [0, 1, 2, 1, 4])
    x, t, y = (f.double().numpy() for f in (given.image_BD, given.text_BD, given.target_BD))
    kept = weights(made)
    f = gated_residual(part(kept, "compose"), x, np.concatenate([x, t], axis=1), training=True)
    numbers = given.target_B.numpy()
    logits = kept["scale"] ** 2 * unit(f) @ unit(y).T
    expected = cross_entropy(logits, np.arange(5), numbers[:, None] == numbers[None])
    assert kept["scale"] == pytest.approx(4.4)
    assert made.training_loss(given, 100.0).item() == pytest.approx(expected, rel=1e-4)


def test_the_scale_is_learned_and_that_of_the_settings_is_not_used() -> None:
    made, given = head(), batch(5, D)
    made.training_loss(given, 1.0).backward()  # type: ignore[no-untyped-call]  # torch's own
    scale = dict(made.named_parameters())["scale"]
    assert scale.grad is not None
    assert scale.grad != 0
    fresh = dict(fusion.create(fusion.HeadConfig("tirg", D)).named_parameters())
    first = [fresh[name].item() for name in ("scale", "compose.gate_weight")]
    assert [*first, fresh["compose.residual_weight"].item()] == [4.0, 1.0, 10.0]


def test_training_on_a_batch_of_one_uses_the_running_statistics_and_keeps_them() -> None:
    made, given = head(), batch(1, D)
    expected = made.eval()(given.image_BD, given.text_BD)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    torch.testing.assert_close(made.train()(given.image_BD, given.text_BD), expected)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
