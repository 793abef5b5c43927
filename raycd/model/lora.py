"""Low-rank adapters in both towers of an encoder (LoRA, Hu et al., ICLR 2022), by peft.

Beside the frozen weight W (O, I) of a layer trains alpha / rank * B A, with A (rank, I) and B
(O, rank), which is 0 at first. What is adapted is each linear layer and attention of a tower; of a
tower that has none, such as CLIP's ResNets, each convolution that is not grouped. `merge` adds the
products to the weights: the encoder is then like any other.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from raycd import extras
from raycd.errors import ConfigError
from raycd.model.encoder import NOT_OF_FEATURES, Encoder


def check_installed() -> None:
    """Raise ConfigError where peft is not installed."""
    if find_spec("peft") is None:
        raise ConfigError(
            "finetune lora (stage1 or adapt) needs a package that is not installed",
            got="no package peft",
            do=extras.install("peft"),
        )


def adapt(encoder: Encoder, *, rank: int, alpha: int, seed: int) -> Any:
    """Put adapters, drawn from the seed, into the encoder; they alone train then.

    Returns peft's LoraModel, for `merge`. Raises ConfigError where peft is not installed, or a
    tower has nothing to adapt.
    """
    check_installed()
    import peft
    from peft.tuners.lora.layer import MultiheadAttention

    names = [*adaptable(encoder, "image"), *adaptable(encoder, "text")]
    for module in encoder.clip.modules():
        # EVA's attention of timm reads the weight of its qkv, unless its bias is added by itself
        if getattr(module, "q_bias", None) is not None and hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapters = peft.LoraModel(encoder.clip, config, "default")
    uncompiled: Any = torch.compiler.disable
    for module in encoder.clip.modules():
        # It changes its weights in place, which torch.compile cannot follow
        if isinstance(module, MultiheadAttention):
            module.forward = uncompiled(module.forward)  # type: ignore[method-assign]  # of this one alone
    return adapters


def merge(adapters: Any) -> None:
    """Add the adapters, if there are some, to the weights of their encoder, and remove them."""
    if adapters is not None:
        adapters.merge_and_unload()


def adaptable(encoder: Encoder, tower: Literal["image", "text"]) -> list[str]:
    """Return the names of a tower's layers that are adapted. Raises ConfigError for none."""
    from open_clip.modified_resnet import AttentionPool2d

    modules = [
        (name, module)
        for name, module in encoder.clip.named_modules()
        if name.startswith("visual.") == (tower == "image") and not name.startswith(NOT_OF_FEATURES)
    ]
    # Others read the weights of their parts: what peft put into these would be passed by
    closed = tuple(
        f"{name}."
        for name, module in modules
        if isinstance(module, nn.MultiheadAttention | AttentionPool2d)
    )
    found: dict[str, list[str]] = {"linear": [], "convolution": []}
    for name, module in modules:
        # open_clip asks whether a text_projection is an nn.Linear, which peft's is not
        if name.startswith(closed) or name.endswith("text_projection"):
            continue
        # peft adapts attention whose queries, keys and values are of one size
        one_size = getattr(module, "_qkv_same_embed_dim", False)
        if isinstance(module, nn.Linear) or (
            isinstance(module, nn.MultiheadAttention) and one_size
        ):
            found["linear"].append(name)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            found["convolution"].append(name)
    names = found["linear"] or found["convolution"]
    if not names:
        raise ConfigError(
            f"LoRA finds nothing to adapt in the {tower} encoder",
            got=type(encoder.clip).__name__,
            expected="linear layers, attention or convolutions",
            do="set finetune both, image or text (of stage1 or adapt)",
        )
    return names
