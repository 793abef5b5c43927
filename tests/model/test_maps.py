"""Maps and token states of the forms of encoders that are supported, of random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raycd.config import DataConfig, EncoderConfig
from raycd.errors import WeightsError
from raycd.features.map_cache import TOKEN_MASK
from raycd.model import encoder as encoders
from raycd.model import maps
from raycd.model.embed import Batch, DecodeImages
from raycd.model.embed_maps import EmbedTokens, EncodeMaps
from raycd.model.encoder import Encoder
from tests.families import families, new, write_tokenizer

MakeEncoder = Callable[[], Encoder]

TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION: dict[str, dict[str, Any]] = {
    "resnet": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16, "patch_size": None},
    "vit": {"layers": 3, "width": 24, "head_width": 12, "patch_size": 16},
    "vit-wide": {"layers": 3, "width": 24, "head_width": 12, "patch_size": 16},
    "vit-avg": {
        **{"layers": 3, "width": 24, "head_width": 12, "patch_size": 16},
        **{"pool_type": "avg", "final_ln_after_pool": True},
    },
    "timm-vit": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": None},
    "timm-convnext": {
        **{"timm_model_name": "convnext_atto", "timm_pool": "avg", "timm_proj": "linear"},
    },
}
# form: (side of images, or both, map, middle)
SHAPES = {
    "resnet": (64, [256, 2, 2], [128, 4, 4]),
    "vit": (64, [24, 4, 4], [24, 4, 4]),
    "vit-wide": ((64, 96), [24, 4, 6], [24, 4, 6]),
    "vit-avg": (64, [24, 4, 4], [24, 4, 4]),
    "timm-vit": (224, [192, 14, 14], [192, 14, 14]),
    "timm-convnext": (64, [320, 2, 2], [160, 4, 4]),
}


def made(folder: Path, form: str) -> Encoder:
    vision = {"image_size": SHAPES[form][0], **VISION[form]}
    config = {"embed_dim": 20, "vision_cfg": vision, "text_cfg": TEXT}
    if form.startswith("timm"):
        config["custom_text"] = True
    (folder / f"raycd-{form}.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    name = EncoderConfig(name=f"raycd-{form}", pretrained="", configs=str(folder))
    return encoders.create(name)


@pytest.fixture
def encoder(tmp_path: Path, request: pytest.FixtureRequest) -> Encoder:
    return made(tmp_path, request.param)


def pixels(encoder: Encoder, count: int = 2) -> torch.Tensor:
    shape = (count, *encoder.preprocess.size, 3)
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


forms = pytest.mark.parametrize("encoder", SHAPES, indirect=True)


@forms
@torch.inference_mode()
def test_maps_have_their_shapes_and_the_pooled_features_are_the_encoders_own(
    encoder: Encoder, request: pytest.FixtureRequest
) -> None:
    _, last, middle = SHAPES[request.node.callspec.params["encoder"]]
    given = pixels(encoder)
    features, found = maps.encode_images(encoder, given, ["middle", "map"])
    assert torch.equal(features, encoder.encode_images(given))
    assert list(found["map"].shape) == [2, *last]
    assert list(found["middle"].shape) == [2, *middle]
    assert not torch.allclose(found["map"][0], found["map"][1])
    expected = {"map": last, "middle": middle, "tokens": [12, 16]}
    assert maps.shapes(encoder, expected) == expected


@pytest.mark.parametrize("encoder", ["resnet"], indirect=True)
@torch.inference_mode()
def test_the_last_map_of_a_resnet_is_what_its_attention_pool_pools(encoder: Encoder) -> None:
    given = pixels(encoder)
    features, found = maps.encode_images(encoder, given, ["map"])
    torch.testing.assert_close(encoder.clip.visual.attnpool(found["map"]), features)
    body = encoder.clip.visual
    _, middle = maps.encode_images(encoder, given, ["middle"])
    torch.testing.assert_close(body.layer4(middle["middle"]), found["map"])


@pytest.mark.parametrize("encoder", ["vit"], indirect=True)
@torch.inference_mode()
def test_the_maps_of_a_vit_are_open_clips_own_intermediates(encoder: Encoder) -> None:
    given = pixels(encoder)
    visual = encoder.clip.visual
    normalised = encoder.preprocess.normalise(given)
    expected = visual.forward_intermediates(normalised, indices=[1, 2])["image_intermediates"]
    last = visual.ln_post(expected[1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    _, found = maps.encode_images(encoder, given, ["map", "middle"])
    torch.testing.assert_close(found["middle"], expected[0])  # the second block of three
    torch.testing.assert_close(found["map"], last)


@pytest.mark.parametrize("encoder", ["timm-vit", "timm-convnext"], indirect=True)
@torch.inference_mode()
def test_the_last_map_of_a_timm_tower_is_its_forward_features(encoder: Encoder) -> None:
    trunk = encoder.clip.visual.trunk
    given = pixels(encoder)
    _, found = maps.encode_images(encoder, given, ["map"])
    expected = trunk.forward_features(encoder.preprocess.normalise(given))
    if expected.ndim == 3:
        expected = expected.transpose(1, 2)[..., -14 * 14 :].reshape(2, -1, 14, 14)
    torch.testing.assert_close(found["map"], expected)
    assert "forward_features" not in vars(trunk)


@pytest.mark.parametrize("encoder", ["vit", "timm-vit"], indirect=True)
@torch.inference_mode()
def test_token_states_give_the_text_feature_by_pooling_and_projection(encoder: Encoder) -> None:
    tokens = encoder.tokenize(["is blue", "has much longer sleeves and is red", ""])
    features, found = maps.encode_tokens(encoder, tokens)
    assert torch.equal(features, encoder.encode_tokens(tokens, whole=True))
    assert found[TOKEN_MASK].sum(1).tolist() == [4, 9, 2]
    ends = tokens.argmax(1)
    clip = encoder.clip
    projection = getattr(clip, "text", clip).text_projection
    pooled = found["tokens"][torch.arange(3), ends] @ projection
    torch.testing.assert_close(pooled, features)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_larger_maps_are_pooled_to_the_size_asked_for(size: int) -> None:
    given = torch.arange(16.0).reshape(1, 1, 4, 4)
    found = maps.pooled(given, size)
    assert found.shape[-1] == min(size, 4)
    torch.testing.assert_close(found.mean() if size == 1 else found.max(), found.max())
    if size == 1:
        assert found.item() == 7.5


def test_the_mask_of_a_hugging_face_tokenizer_hides_its_own_padding(tmp_path: Path) -> None:
    tokenizer, configs = tmp_path / "tokenizer", tmp_path / "configs"
    write_tokenizer(tokenizer)
    configs.mkdir()
    family = families(tokenizer)["SigLIP2"]
    family.model["text_cfg"]["tokenizer_kwargs"] = {"pad_token": "<eos>"}  # as SigLIP's own
    encoder = new(family, configs)
    tokens = encoder.tokenize(["is blue", "is blue and has long sleeves"])
    padding = int(tokens[0, -1])
    assert padding == encoder.tokenizer.padding != 0
    _, extra = maps.encode_tokens(encoder, tokens)
    assert extra["token_mask"].sum(1).tolist() == [(row != padding).sum() for row in tokens]


def test_the_mask_of_mode_clips_hides_the_padding_before_the_token_of_the_class(
    tmp_path: Path,
) -> None:
    tokenizer, configs = tmp_path / "tokenizer", tmp_path / "configs"
    write_tokenizer(tokenizer)
    configs.mkdir()
    family = families(tokenizer)["SigLIP2"]
    own = {"bos_token": "<bos>", "cls_token": "<unk>"}
    family.model["text_cfg"] |= {"tokenizer_mode": "clips", "tokenizer_kwargs": own}
    encoder = new(family, configs)
    tokens = encoder.tokenize(["is blue", "is blue " * 20])
    padding = encoder.tokenizer.padding
    assert tokens[0, -2] == padding != tokens[0, -1]
    _, extra = maps.encode_tokens(encoder, tokens)
    words = int((tokens[0, :-1] != padding).sum())
    assert extra["token_mask"].sum(1).tolist() == [words, tokens.shape[1] - 1]
    assert extra["token_mask"][0, :words].all()


def test_a_mask_ends_with_the_last_real_token_and_never_hides_all() -> None:
    tokens = torch.tensor([[9, 1, 5, 1, 1], [1, 1, 1, 1, 1], [9, 4, 5, 6, 7]])
    assert maps.token_mask(tokens, 1).tolist() == [
        [True, True, True, False, False],
        [True, False, False, False, False],
        [True] * 5,
    ]


def test_a_tower_that_is_not_known_is_refused_with_what_is(new_encoder: MakeEncoder) -> None:
    encoder = new_encoder()
    encoder.clip.visual = torch.nn.Identity()
    with pytest.raises(WeightsError, match=r"the head needs \(map\)\n.*Identity\n.*CLIP ResNet"):
        maps.encode_images(encoder, pixels(encoder), ["map"])
    del encoder.clip.ln_final
    with pytest.raises(WeightsError, match=r"the head needs \(tokens\)"):
        maps.encode_tokens(encoder, encoder.tokenize(["is blue"]))


# ---- the steps of the cache


def embedded(encoder: Encoder, need: str, size: int, batch: dict[str, list[str]]) -> Batch:
    """Decode and encode a batch of images."""
    decode = DecodeImages(encoder.preprocess.to_dict(), DataConfig())
    return EncodeMaps(encoder, need, size)(decode(batch))


def test_values_of_images_are_float16_and_broken_images_have_none(
    new_encoder: MakeEncoder, tmp_path: Path
) -> None:
    encoder = new_encoder()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    image.save(tmp_path / "whole.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    paths = [str(tmp_path / "broken.png"), str(tmp_path / "whole.png")]
    found = embedded(encoder, "middle", 1, {"key": ["b", "w"], "path": paths})
    assert list(found["status"]) == ["not_an_image", "ok"]
    assert found["value"][0] is None
    with torch.inference_mode():
        _, expected = maps.encode_images(encoder, encoder.preprocess(image)[None], ["middle"], 1)
    value = np.frombuffer(found["value"][1], np.float16).reshape(128, 1, 1)
    np.testing.assert_array_equal(value, expected["middle"][0].half().numpy())


def test_values_of_texts_are_the_states_of_their_real_tokens(new_encoder: MakeEncoder) -> None:
    encoder = new_encoder()
    found = EmbedTokens(encoder)({"key": ["is blue", "is blue with stripes"]})
    states = [np.frombuffer(value, np.float16).reshape(-1, 16) for value in found["value"]]
    assert [len(state) for state in states] == [4, 6]
    with torch.inference_mode():
        _, expected = maps.encode_tokens(encoder, encoder.tokenize(["is blue"]))
    np.testing.assert_array_equal(states[0], expected["tokens"][0, :4].half().numpy())


def test_a_map_that_is_not_finite_is_refused(new_encoder: MakeEncoder, tmp_path: Path) -> None:
    encoder = new_encoder()
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    torch.nn.init.constant_(encoder.clip.visual.layer4[0].bn3.bias, torch.nan)
    with pytest.raises(WeightsError, match="a map that is not finite"):
        embedded(encoder, "map", 0, {"key": ["a"], "path": [str(tmp_path / "a.png")]})
