"""Gradient checkpointing for CLIP's ResNets, which open_clip offers for transformers only."""

from __future__ import annotations

from functools import partial

from open_clip.modified_resnet import Bottleneck
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(visual: nn.Module) -> None:
    """Let every residual block of a ModifiedResNet recompute its activations in the backward pass.

    Batch norms must be in eval mode, or they would count each batch twice. Other image encoders are
    left alone.
    """
    for block in visual.modules():
        if isinstance(block, Bottleneck):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
