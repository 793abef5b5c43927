"""Batch norms folded into the convolutions before them, where a network only answers."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(module: nn.Module) -> None:
    """Fold batch norms into the convolutions before them: the same function in fewer steps.

    `module` is in eval mode and will only answer. Folded are convN and bnN in CLIP's and timm's
    ResNets, and a convolution right before a batch norm in a Sequential. A folded batch norm
    becomes the identity.
    """
    from open_clip.modified_resnet import Bottleneck, ModifiedResNet
    from timm.models import resnet

    known = (Bottleneck, ModifiedResNet, resnet.BasicBlock, resnet.Bottleneck, resnet.ResNet)
    children = dict(module.named_children())
    names, pairs = list(children), list[tuple[str, str]]()
    # The same names mean another order in other networks, as in pre-activation ResNets
    if type(module) in known:
        pairs = [(name, name.replace("conv", "bn")) for name in names if name.startswith("conv")]
    elif type(module).forward is nn.Sequential.forward:
        pairs = list(pairwise(names))
    for convolution, norm in pairs:
        conv, bn = children.get(convolution), children.get(norm)
        # timm has subclasses with more in them: an activation, standardised weights
        if type(conv) is nn.Conv2d and type(bn) is nn.BatchNorm2d and bn.running_mean is not None:
            setattr(module, convolution, fuse_conv_bn_eval(conv, bn))
            setattr(module, norm, nn.Identity())
    for child in children.values():
        fold_batch_norms(child)
