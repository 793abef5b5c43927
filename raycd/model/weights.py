"""Weights of modules: how they are saved, and that all are finite, in training and in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import get_total_norm

from raycd.errors import WeightsError


def save_weights(module: nn.Module, path: Path) -> None:
    """Write all weights of a module as safetensors; tied ones by each of their names."""
    weights, seen = dict[str, torch.Tensor](), set[int]()
    for name, value in module.state_dict().items():
        own = value.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        weights[name] = own.clone() if place in seen else own  # safetensors refuses shared memory
        seen.add(place)
    save_file(weights, path)


def broken(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of the tensors that hold a NaN or an infinity."""
    floats = [value for value in tensors.values() if value.is_floating_point()]
    if get_total_norm(floats).isfinite():  # a sixth of the time of looking at each
        return []
    return [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]


def check_weights(module: nn.Module, what: str, *, do: str) -> None:
    """Raise WeightsError, with `do` as its remedy, where a weight of the module is not finite.

    `what` names the module.
    """
    names = broken(module.state_dict())
    if names:
        raise WeightsError(
            f"{what} has weights that are not finite",
            got=", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
            expected="finite numbers",
            do=do,
        )
