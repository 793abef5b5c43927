"""Layers in numpy, with the weights of a module, to state a head's formulas a second time."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
Weights = dict[str, Array]


def weights(module: nn.Module) -> Weights:
    """Return weights and buffers by their names, in double precision."""
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def part(given: Weights, prefix: str) -> Weights:
    """Return the weights of a submodule, by their names in it."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in given.items() if name.startswith(start)}


def fc(given: Weights, name: str, x: Array) -> Array:
    out: Array = x @ given[f"{name}.weight"].T + given[f"{name}.bias"]
    return out


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def unit(x: Array) -> Array:
    normalised: Array = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return normalised


def batch_norm(given: Weights, name: str, x: Array, *, training: bool) -> Array:
    """Normalise by the batch's own mean and variance, or by the running ones."""
    own = part(given, name)
    mean = x.mean(axis=0) if training else own["running_mean"]
    variance = x.var(axis=0) if training else own["running_var"]
    return (x - mean) / np.sqrt(variance + 1e-5) * own["weight"] + own["bias"]


def cross_entropy(logits: Array, own: Any, left_out: Any = False) -> float:
    """Return the mean of -log softmax at `own`; what is left out is no class, but for its own."""
    rows = np.arange(len(logits))
    left_out = np.broadcast_to(left_out, logits.shape).copy()
    left_out[rows, own] = False
    exponents = np.where(left_out, -np.inf, logits)
    return float(np.mean(np.log(np.exp(exponents).sum(axis=1)) - logits[rows, own]))


def lively(module: nn.Module) -> nn.Module:
    """Give batch norms weights and statistics of their own, and scales that are not round."""
    generator = torch.Generator().manual_seed(5)
    for name, value in module.state_dict().items():
        if name.endswith("running_mean"):
            value.copy_(torch.randn(value.shape, generator=generator))
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.dim() == 0 and value.is_floating_point():
            value.mul_(1.1)
        elif value.dim() == 1 and value.is_floating_point():
            value.add_(0.2 * torch.randn(value.shape, generator=generator))
    return module
