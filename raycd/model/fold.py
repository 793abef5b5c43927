"""Batch norms folded into the convolutions before them: the same function in fewer steps, for
answering only.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(module: nn.Module) -> None:
    """Fold every batch norm of `module` (in eval mode) that follows a convolution, as CLIP's
    ResNets name them.

    Those are convN and bnN of one module, and a convolution right before a batch norm in a
    Sequential. A batch norm that was folded becomes the identity.
    """
    children = dict(module.named_children())
    names = list(children)
    pairs = [(name, name.replace("conv", "bn")) for name in names if name.startswith("conv")]
    if isinstance(module, nn.Sequential):
        pairs += list(pairwise(names))
    for convolution, norm in pairs:
        conv, bn = children.get(convolution), children.get(norm)
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            setattr(module, convolution, fuse_conv_bn_eval(conv, bn))
            setattr(module, norm, nn.Identity())
    for child in children.values():
        fold_batch_norms(child)
