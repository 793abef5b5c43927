"""LoRA: what is adapted, what trains, and that the merged encoder is a plain one."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycd.config import Config
from raycd.errors import ConfigError
from raycd.model import lora
from raycd.model.encoder import Encoder, load_saved
from raycd.train.fuse import check_joint
from tests import families

TEXTS = ["is red", "has long sleeves"]
NAMES = ["CLIP ResNet", "CLIP ViT", "SigLIP2", "CoCa", "ConvNeXt", "MobileCLIP"]


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    families.write_tokenizer(tokenizer)
    known, configs = families.families(tokenizer), tmp_path_factory.mktemp("configs")

    def make(name: str) -> Encoder:
        encoder = families.new(known[name], configs)
        for key, value in encoder.clip.state_dict().items():
            if key.endswith("bn3.weight"):  # 0 in an untrained ResNet, whose blocks do nothing
                value.fill_(0.5)
        return encoder

    return make


def features(encoder: Encoder) -> torch.Tensor:
    pixels = torch.stack([encoder.preprocess(picture) for picture in families.pictures()[:2]])
    return torch.cat(
        [encoder.encode_images(pixels), encoder.encode_tokens(encoder.tokenize(TEXTS))]
    )


def train(encoder: Encoder) -> None:
    """Take two steps that move every adapter; between them is an evaluation."""
    adam = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        adam.zero_grad()
        features(encoder).square().sum().backward()  # type: ignore[no-untyped-call]  # torch's
        adam.step()
        with torch.inference_mode():
            features(encoder)


def test_the_attention_of_eva_is_adapted_too(member: Callable[[str], Encoder]) -> None:
    """EVA01 and EVA02-E have one weight for queries, keys and values, and biases beside it."""
    from timm.models.eva import Eva

    encoder = member("SigLIP2")
    sides: dict[str, Any] = {"img_size": encoder.preprocess.size[0], "patch_size": 8}
    encoder.clip.visual.trunk = Eva(
        **sides, embed_dim=encoder.dim, depth=1, num_heads=2, qkv_fused=True, num_classes=0
    )
    encoder.trainable("none")
    before = features(encoder).detach()
    adapters = lora.adapt(encoder, rank=4, alpha=8, seed=0)
    torch.testing.assert_close(features(encoder).detach(), before, rtol=1e-5, atol=1e-6)
    train(encoder)
    without = [
        name for name, p in encoder.clip.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert without == []
    adapted = features(encoder).detach()
    lora.merge(adapters)
    torch.testing.assert_close(features(encoder).detach(), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_merged_encoder_has_the_adapted_features_and_is_saved_as_a_plain_one(
    name: str, member: Callable[[str], Encoder], tmp_path: Path
) -> None:
    encoder = member(name)
    encoder.trainable("none")
    before, names = features(encoder).detach(), set(encoder.clip.state_dict())
    frozen = {key: value.clone() for key, value in encoder.clip.state_dict().items()}
    adapters = lora.adapt(encoder, rank=4, alpha=8, seed=0)
    torch.testing.assert_close(features(encoder).detach(), before, rtol=1e-5, atol=1e-6)
    trained = {k: p.clone() for k, p in encoder.clip.named_parameters() if p.requires_grad}
    assert all(".lora_A." in key or ".lora_B." in key for key in trained)
    assert {key.startswith("visual.") for key in trained} == {False, True}
    train(encoder)
    for key, parameter in encoder.clip.named_parameters():
        if key in trained:
            assert not torch.equal(parameter, trained[key]), key
    adapted = features(encoder).detach()
    assert (adapted - before).abs().max() > 0.01
    lora.merge(adapters)
    torch.testing.assert_close(features(encoder).detach(), adapted, rtol=1e-5, atol=1e-5)
    assert set(encoder.clip.state_dict()) == names
    changed = {k for k, v in encoder.clip.state_dict().items() if not torch.equal(v, frozen[k])}
    assert all(key.endswith("weight") for key in changed)
    encoder.save(tmp_path)
    torch.testing.assert_close(features(load_saved(tmp_path)), features(encoder))


def test_attention_and_mlp_of_both_towers_are_adapted(member: Callable[[str], Encoder]) -> None:
    encoder = member("CLIP ViT")
    parts = [
        f"resblocks.{block}.{part}"
        for block in (0, 1)
        for part in ("attn", "mlp.c_fc", "mlp.c_proj")
    ]
    assert lora.adaptable(encoder, "image") == [f"visual.transformer.{part}" for part in parts]
    assert lora.adaptable(encoder, "text") == [f"transformer.{part}" for part in parts]


def test_of_a_resnet_the_convolutions_are_adapted(member: Callable[[str], Encoder]) -> None:
    names = lora.adaptable(member("CLIP ResNet"), "image")
    assert "visual.layer4.0.conv2" in names
    assert "visual.layer4.0.downsample.0" in names
    assert not any("attnpool" in name for name in names)


def test_the_seed_draws_the_adapters_and_leaves_other_draws_as_they_were(
    member: Callable[[str], Encoder],
) -> None:
    drawn = []
    for seed in (1, 1, 2):
        encoder = member("CLIP ViT")
        torch.manual_seed(7)
        lora.adapt(encoder, rank=2, alpha=2, seed=seed)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(7)))
        drawn.append(next(p for k, p in encoder.clip.named_parameters() if "lora_A" in k))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_tower_with_nothing_to_adapt_is_refused(member: Callable[[str], Encoder]) -> None:
    encoder = member("CLIP ViT")
    encoder.clip.visual = nn.Sequential(nn.Flatten(), nn.LayerNorm(3))
    with pytest.raises(ConfigError, match="LoRA finds nothing to adapt in the image encoder"):
        lora.adapt(encoder, rank=2, alpha=2, seed=0)


def test_without_peft_the_message_says_how_to_get_it(
    new_encoder: Callable[[], Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    config = Config.model_validate({"stage1": {"finetune": "lora"}})
    with pytest.raises(ConfigError, match=r"pip install 'raycd\[lora\]'"):
        lora.adapt(new_encoder(), rank=2, alpha=2, seed=0)
    with pytest.raises(ConfigError, match=r"finetune lora \(stage1 or adapt\) needs"):
        check_joint(config, composes=False)  # before any stage trains
