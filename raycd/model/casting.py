"""Weights that an encoder holds in bf16, cast once, where it only answers.

Autocast casts fp32 weights anew in each call. Here those of linear layers, convolutions and
attention are bf16 already, so autocast finds nothing left to do for them: the numbers are the same.

Towers of images that pass bf16 from layer to layer under autocast, too (CLIP's ResNets and ViTs),
go without it: their norms alone compute in fp32. The others, and texts, whose sums autocast keeps
in fp32, would lose precision by that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from raycd.model import plugins
from raycd.model.encoder import Encoder

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


def hold_in_bf16(encoder: Encoder) -> None:
    """Cast the weights of a frozen encoder whose precision is bf16; its features stay fp32.

    It cannot be saved afterwards; a second call does nothing. Encoders of other packages stay as
    they are: autocast alone is right where they compute a part in fp32.
    """
    is_held = any(own.dtype == torch.bfloat16 for own in encoder.clip.parameters())
    if plugins.KIND in encoder.model_config or is_held:
        return
    for module in encoder.clip.modules():
        if isinstance(module, nn.Linear | nn.MultiheadAttention | Convolution):
            _cast(module)
        if callable(getattr(module, "get_cast_dtype", None)):
            module.get_cast_dtype = _sums_in  # open_clip takes that of the weights otherwise
    if _is_bf16_throughout(encoder.clip.visual):
        for module in encoder.clip.visual.modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_pre_hook(_up)
                module.register_forward_hook(_down)
            elif not isinstance(module, BatchNorm):  # which takes bf16 with weights in fp32
                _cast(module)
        encoder.images_in_bf16 = True


def _cast(module: nn.Module) -> None:
    for own in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if own.is_floating_point():
            own.data = own.data.to(torch.bfloat16)


def _sums_in() -> torch.dtype:
    return torch.float32


def _is_bf16_throughout(visual: nn.Module) -> bool:
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import LayerScale, VisionTransformer

    scaled = any(isinstance(module, LayerScale) for module in visual.modules())
    return isinstance(visual, ModifiedResNet | VisionTransformer) and not scaled


def _up(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() for value in given)


def _down(module: nn.Module, given: object, output: torch.Tensor) -> torch.Tensor:
    return output.to(torch.bfloat16)
