import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from raycd.config import Stage2Config
from raycd.errors import ConfigError, WeightsError
from raycd.model import fusion
from raycd.model.fusion.registry import SETTINGS, WEIGHTS
from tests.model.batches import batch
from tests.model.formulas import Array, Weights, fc, part, relu, weights

D, K, P, H = 6, 3, 5, 7
HEADS = [name for name in fusion.names() if not fusion.head_class(name).needs]
TRAINED = [name for name in HEADS if fusion.head_class(name).trains]
DROPOUT = ["clip_cd", "combiner", "composeae"]


def config(name: str, **sizes: Any) -> fusion.HeadConfig:
    return fusion.HeadConfig(
        name,
        **{
            "dim": D,
            "bilinear_dim": K,
            "projection_dim": P,
            "hidden_dim": H,
            "dropout": 0.5,
            **sizes,
        },
    )


def head(name: str) -> fusion.Head:
    torch.manual_seed(0)
    return fusion.create(config(name)).eval()


def features(rows: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image, text = (3 * torch.randn(rows, D, generator=generator) for _ in range(2))
    return image, text


# ---- the formulas, in numpy
# ----------------------------------------------------------------------------------------


def combiner_parts(given: Weights, x: Array, t: Array) -> Array:
    """Return v + l t + (1 - l) x of Clip4Cir, without dropout."""
    h = np.concatenate(
        [relu(fc(given, "project_text.0", t)), relu(fc(given, "project_image.0", x))], axis=1
    )
    v = fc(given, "concatenation.3", relu(fc(given, "concatenation.0", h)))
    weight = 1 / (1 + np.exp(-fc(given, "weight.3", relu(fc(given, "weight.0", h)))))
    parts = v + weight * t + (1 - weight) * x
    return parts


def bilinear_part(given: Weights, x: Array, t: Array) -> Array:
    """Return f_out of eqs 5 to 7."""
    f_image, f_text = relu(fc(given, "project_image.0", x)), relu(fc(given, "project_text.0", t))
    f_bil = np.stack([np.outer(i, j).reshape(-1) for i, j in zip(f_image, f_text, strict=True)])
    return fc(given, "output.2", relu(fc(given, "output.0", f_bil)))


def normalised(x: Array) -> torch.Tensor:
    return torch.from_numpy(x / np.linalg.norm(x, axis=1, keepdims=True)).float()


def test_combiner_is_clip4cirs_formula() -> None:
    module, (image, text) = head("combiner"), features()
    expected = combiner_parts(weights(module), image.numpy(), text.numpy())
    torch.testing.assert_close(module(image, text), normalised(expected))


def test_clip_cd_adds_bilinear_pooling_to_the_combiner() -> None:
    module, (image, text) = head("clip_cd"), features()
    given, x, t = weights(module), image.numpy(), text.numpy()
    bilinear = bilinear_part(part(given, "bilinear"), x, t)
    assert np.abs(bilinear).min(axis=1).max() > 0.01
    torch.testing.assert_close(
        module(image, text), normalised(combiner_parts(part(given, "combiner"), x, t) + bilinear)
    )


def test_the_bilinear_branch_drops_features_of_its_own_while_training_and_only_then() -> None:
    bare, dropping = (
        fusion.create(config("clip_cd", dropout=0.0, bilinear_dropout=p)) for p in (0.0, 0.5)
    )
    dropping.load_state_dict(bare.state_dict())
    image, text = features(200)
    expected = bare.train()(image, text)
    torch.testing.assert_close(bare(image, text), expected, rtol=0, atol=0)
    torch.testing.assert_close(dropping.eval()(image, text), expected, rtol=0, atol=0)
    branch: Any = dropping.train()
    plain: Any = bare
    outer = torch.ones(200, K, 1) * torch.ones(200, 1, K)
    dropped = branch.bilinear.drop(outer.flatten(1))
    assert {*dropped.unique().tolist()} == {0.0, 2.0}
    assert not torch.equal(branch.bilinear(image, text), plain.bilinear(image, text))
    combiner = plain.combiner.parts(image, text)
    torch.testing.assert_close(branch.combiner.parts(image, text), combiner, rtol=0, atol=0)


def test_clip_cd_without_its_bilinear_part_is_the_combiner() -> None:
    comprehensive: Any = head("clip_cd")
    (image, text), combiner = features(), head("combiner")
    combiner.load_state_dict(comprehensive.combiner.state_dict())
    assert not torch.allclose(comprehensive(image, text), combiner(image, text))
    for parameter in comprehensive.bilinear.output[2].parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(comprehensive(image, text), combiner(image, text))


def test_the_image_alone_and_the_text_alone_are_their_normalised_features() -> None:
    image, text = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]])
    torch.testing.assert_close(head("image_only")(image, text), torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(head("text_only")(image, text), torch.tensor([[0.0, 1.0]]))


def test_sum_is_the_normalised_sum_and_has_no_parameters() -> None:
    module = head("sum")
    assert list(module.parameters()) == []
    found = module(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8]]))


# ---- every head


def test_heads_that_train_are_those_with_weights() -> None:
    assert [name for name in HEADS if list(head(name).parameters())] == TRAINED


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("rows", [1, 5])
def test_a_query_is_normalised_and_of_the_features_size(name: str, rows: int) -> None:
    query = head(name)(*features(rows))
    assert query.shape == (rows, D)
    torch.testing.assert_close(query.norm(dim=-1), torch.ones(rows))


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    module = head(name).train()
    module.training_loss(batch(5, D), 10.0).backward()  # type: ignore[no-untyped-call]  # torch's
    assert all(
        parameter.grad is not None and parameter.grad.any() for parameter in module.parameters()
    )


@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_is_of_training_only(name: str) -> None:
    module, given = head(name), features()
    assert torch.equal(module(*given), module(*given))
    module.train()
    assert not torch.equal(module(*given), module(*given))


@pytest.mark.parametrize("name", TRAINED)
def test_the_loss_of_a_batch_of_one_is_finite(name: str) -> None:
    assert head(name).train().training_loss(batch(1, D), 10.0).isfinite()


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_right_for_a_triplet_too_is_not_its_negative(name: str) -> None:
    module, one = head(name), batch(2, D)
    right = torch.tensor([[0, 1], [1, 0]])
    both = dataclasses.replace(one, right_BT=right, image_B=torch.zeros(2, dtype=torch.int64))
    alone = dataclasses.replace(both, right_BT=torch.tensor([[0, -1], [1, -1]]))
    loss = module.training_loss(both, 10.0).item()
    assert loss < module.training_loss(alone, 10.0).item()
    if name != "composeae":  # whose other terms have no negatives
        assert loss == 0.0


@pytest.mark.parametrize("name", TRAINED)
def test_under_bf16_the_loss_is_nearly_the_same_and_stays_fp32(name: str) -> None:
    module = head(name)
    whole = module.training_loss(batch(8, D), 10.0)
    with torch.autocast("cpu", torch.bfloat16):
        half = module.training_loss(batch(8, D), 10.0)
    assert half.dtype == torch.float32
    assert half.item() != whole.item()
    assert half.item() == pytest.approx(whole.item(), rel=0.1)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "dcnet"])
def test_a_head_that_re_ranks_nothing_says_so(name: str) -> None:
    assert not head(name).reranks
    with pytest.raises(NotImplementedError, match="re-ranks nothing"):
        head(name).rerank(*features(), torch.zeros(5, 2, D))


@pytest.mark.parametrize("name", HEADS)
def test_a_saved_head_gives_the_same_queries(name: str, tmp_path: Path) -> None:
    module = head(name)
    fusion.save(module, config(name), tmp_path / "head")
    loaded, settings = fusion.load(tmp_path / "head", dim=D)
    assert settings == config(name)
    assert not loaded.training
    assert torch.equal(loaded(*features()), module(*features()))


def test_a_head_that_was_saved_before_heads_had_further_needs_is_loaded(tmp_path: Path) -> None:
    fusion.save(head("combiner"), config("combiner"), tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert settings.pop("extra") == {}
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    assert fusion.load(tmp_path)[1] == config("combiner")


def test_the_shapes_that_a_head_needs_are_saved_with_it(tmp_path: Path) -> None:
    shaped = config("combiner", extra={"map": [4, 3, 3]})
    fusion.save(head("combiner"), shaped, tmp_path)
    assert fusion.load(tmp_path)[1] == shaped


def test_the_class_of_a_head_is_known_before_one_is_built() -> None:
    for name in HEADS:
        assert isinstance(head(name), fusion.head_class(name))


def test_default_sizes_are_four_and_eight_times_the_features() -> None:
    module: Any = fusion.create(fusion.HeadConfig("combiner", dim=D))
    assert module.project_text[0].weight.shape == (24, 6)
    assert module.concatenation[0].weight.shape == (48, 48)
    assert module.weight[3].weight.shape == (1, 48)
    assert module.weight[2].p == 0.5


def test_the_settings_of_stage_2_shape_the_head() -> None:
    settings = Stage2Config(
        head="combiner",
        bilinear_dim=7,
        projection_dim=8,
        hidden_dim=9,
        dropout=0.25,
        bilinear_dropout=0.1,
    )
    expected = fusion.HeadConfig("combiner", 640, 7, 8, 9, 0.25, 0.1)
    assert fusion.HeadConfig.of(settings, 640) == expected


# ---- mistakes


@pytest.mark.parametrize("k", [6, 7])
def test_k_of_the_features_size_or_more_is_refused_with_what_is_possible(k: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"K = {k}, D = 6\n +expected: K from 1 to 5\n.*bilinear_dim 3"
    ):
        fusion.create(config("clip_cd", bilinear_dim=k))
    fusion.create(config("clip_cd", bilinear_dim=5))


def test_k_does_not_concern_heads_that_have_none() -> None:
    fusion.create(config("combiner", bilinear_dim=100))


def test_an_unknown_head_names_the_nearest_and_all() -> None:
    with pytest.raises(
        ConfigError, match=rf"combinr\n.*{', '.join(fusion.names())}\n.*did you mean combiner\?"
    ):
        fusion.create(config("combinr"))


def test_a_head_of_another_size_than_the_encoder_is_refused(tmp_path: Path) -> None:
    fusion.save(head("sum"), config("sum"), tmp_path)
    with pytest.raises(WeightsError, match="a head for features of 6, an encoder of 16"):
        fusion.load(tmp_path, dim=16)


@pytest.mark.parametrize(
    "damage",
    [
        "no folder",
        "no weights",
        "truncated",
        "other shape",
        "malformed",
        "list",
        "field",
        "no field",
        "no shapes",
    ],
)
def test_a_broken_head_is_a_weights_error(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "head"
    module = head("combiner")
    if damage != "no folder":
        fusion.save(module, config("combiner"), folder)
    if damage == "no weights":
        (folder / WEIGHTS).unlink()
    elif damage == "truncated":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])
    elif damage == "other shape":
        save_file({**module.state_dict(), "weight.3.bias": torch.zeros(2)}, folder / WEIGHTS)
    elif damage != "no folder":
        texts = {
            "malformed": "{",
            "list": "[]",
            "field": '{"name": "sum", "dim": 6, "x": 1}',
            "no field": "{}",
            "no shapes": '{"name": "sum", "dim": 6, "extra": null}',
        }
        (folder / SETTINGS).write_text(texts[damage])
    with pytest.raises(WeightsError, match="no readable fusion head"):
        fusion.load(folder)
