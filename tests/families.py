"""Tiny encoders in the form of each family of open_clip, and a tokenizer trained in a second."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from raycd.config import EncoderConfig
from raycd.data.preprocess import Preprocess
from raycd.model import encoder as encoders
from raycd.model.encoder import Encoder

JAPANESE = "青い長袖のドレス"
# What the tokenizer learns: drawn garments in English, German and Japanese
CORPUS = [
    *["is blue and has long sleeves", "a photo of a red dress", "has no belt, and is longer"],
    *["das Kleid ist größer und grün", "ein Foto von einem roten Hemd", "ohne Gürtel"],
    *[JAPANESE, "赤いシャツの写真", "ベルトなしで、もっと長い", "緑のトップス"],
]
IMAGES = [(90, 90), (160, 50), (50, 160)]  # square, wide, tall


@dataclass(frozen=True)
class Family:
    """open_clip's `model_cfg` and `preprocess_cfg` of a tiny member."""

    model: dict[str, Any]
    preprocess: dict[str, Any]


def _text(**changes: Any) -> dict[str, Any]:
    tiny = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    return tiny | changes


_VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
_RESNET = {
    "image_size": 32,
    "layers": [1, 1, 1, 1],
    "width": 8,
    "head_width": 16,
    "patch_size": None,
}
_HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
_SQUASH = {"resize_mode": "squash", **_HALF}
_SIGLIP_TEXT: dict[str, Any] = {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
    "tokenizer_kwargs": {"clean": "canonicalize"},
}


def families(tokenizer: Path) -> dict[str, Family]:
    """Return the families by name. `tokenizer` is the folder of the Hugging Face ones."""
    hugging_face = {"hf_tokenizer_name": str(tokenizer), "vocab_size": 512}
    return {
        "CLIP ResNet": Family(
            {"embed_dim": 16, "quick_gelu": True, "vision_cfg": _RESNET, "text_cfg": _text()}, {}
        ),
        "CLIP ViT": Family({"embed_dim": 24, "vision_cfg": _VIT, "text_cfg": _text()}, {}),
        "SigLIP2": Family(
            {
                "embed_dim": 64,
                "init_logit_bias": -10,
                "custom_text": True,
                "vision_cfg": {
                    "image_size": 160,
                    "timm_model_name": "test_vit",
                    "timm_model_pretrained": False,
                    "timm_pool": "map",
                    "timm_proj": "none",
                },
                "text_cfg": _text(**_SIGLIP_TEXT, **hugging_face),
            },
            _SQUASH,
        ),
        "PE": Family(
            {
                "embed_dim": 24,
                "custom_text": True,
                "vision_cfg": {
                    "image_size": 384,
                    "timm_model_name": "vit_pe_core_tiny_patch16_384",
                    "timm_pool": "map",
                    "timm_proj": None,
                },
                "text_cfg": _text(),
            },
            {"interpolation": "bilinear", **_SQUASH},
        ),
        "MobileCLIP": Family(
            {
                "embed_dim": 24,
                "custom_text": True,
                "vision_cfg": {
                    "image_size": 256,
                    "timm_model_name": "fastvit_t8",
                    "timm_pool": "avg",
                    "timm_proj": None,
                    "timm_drop": 0.0,
                    "timm_drop_path": 0.0,
                },
                "text_cfg": _text(no_causal_mask=True),
            },
            {"interpolation": "bilinear", "mean": [0.0] * 3, "std": [1.0] * 3},
        ),
        "ConvNeXt": Family(
            {
                "embed_dim": 24,
                "vision_cfg": {
                    "image_size": 160,
                    "timm_model_name": "test_convnext",
                    "timm_pool": "",
                    "timm_proj": "linear",
                },
                "text_cfg": _text(),
            },
            {},
        ),
        "CLIPA": Family(
            {
                "embed_dim": 24,
                "vision_cfg": {
                    **_VIT,
                    "no_ln_pre": True,
                    "pool_type": "avg",
                    "final_ln_after_pool": True,
                },
                "text_cfg": _text(
                    pool_type="last",
                    no_causal_mask=True,
                    tokenizer_kwargs={"strip_sep_token": True},
                    **hugging_face,
                ),
            },
            {"interpolation": "bilinear", "resize_mode": "squash"},
        ),
        "CoCa": Family(
            {
                "embed_dim": 24,
                "custom_text": True,
                "vision_cfg": {
                    **_VIT,
                    "attentional_pool": True,
                    "attn_pooler_heads": 2,
                    "output_tokens": True,
                },
                "text_cfg": _text(embed_cls=True, output_tokens=True),
                "multimodal_cfg": {**_text(), "attn_pooler_heads": 2},
            },
            {},
        ),
        "longest, not square": Family(
            {
                "embed_dim": 24,
                "vision_cfg": {**_VIT, "image_size": [32, 48]},
                "text_cfg": _text(),
            },
            {"resize_mode": "longest", "fill_color": 9},
        ),
    }


def new(family: Family, configs: Path) -> Encoder:
    """Return a member with random weights, always the same."""
    (configs / "tiny-member.json").write_text(json.dumps(family.model), encoding="utf-8")
    torch.manual_seed(0)
    encoder = encoders.create(
        EncoderConfig(name="tiny-member", pretrained="", configs=str(configs))
    )
    settings = encoder.preprocess.open_clip() | family.preprocess
    encoder.preprocess = Preprocess.of_open_clip(settings)
    return encoder


def new_roberta(tokenizer: Path, folder: Path) -> tuple[Encoder, Path]:
    """Return a tiny ViT with a text encoder of Hugging Face, and the folder that configures it."""
    from transformers import RobertaConfig

    source, configs = folder / "roberta", folder / "configs"
    shutil.copytree(tokenizer, source)
    RobertaConfig(
        vocab_size=512,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=40,
        pad_token_id=0,
    ).save_pretrained(source)
    text = {"hf_model_name": str(source), "hf_tokenizer_name": str(source), "context_length": 16}
    text |= {"hf_proj_type": "mlp", "hf_pooler_type": "mean_pooler"}
    family = Family({"embed_dim": 24, "vision_cfg": _VIT, "text_cfg": text}, {})
    configs.mkdir()
    return new(family, configs), source


def pictures() -> list[Image.Image]:
    """Return a square, a wide and a tall picture of noise."""
    torch.manual_seed(1)
    return [
        Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy())
        for width, height in IMAGES
    ]


def write_tokenizer(folder: Path) -> None:
    """Train a tokenizer of SigLIP2's (Gemma's) form, with bytes for what it has not learnt."""
    from tokenizers import Tokenizer, decoders, normalizers, processors, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"]
    as_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=specials + as_bytes, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    fast: Any = PreTrainedTokenizerFast  # has no types
    fast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        sep_token="<eos>",
        unk_token="<unk>",
        padding_side="right",
    ).save_pretrained(folder)
