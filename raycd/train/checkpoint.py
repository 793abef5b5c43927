"""A training checkpoint without pickle: weights and optimizer as safetensors, history as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from raycd.errors import WeightsError, brief
from raycd.model.weights import save_weights

WEIGHTS, OPTIMIZER, HISTORY = "weights.safetensors", "optimizer.safetensors", "history.json"


def save(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: Sequence[Mapping[str, Any]],
) -> None:
    """Write a checkpoint into `folder` (created); `history` has an entry a finished epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(module, folder / WEIGHTS)
    state = {
        f"{number}.{name}": torch.as_tensor(value).detach().cpu().contiguous()
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    save_file(state, folder / OPTIMIZER)
    (folder / HISTORY).write_text(json.dumps(list(history)), encoding="utf-8")


def restore(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    """Fill module and optimizer from a checkpoint and return its history.

    Raises WeightsError where it is damaged.
    """
    load_weights(folder, module)
    try:
        flat = load_file(folder / OPTIMIZER)
        history = read_history(folder)
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in flat.items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise _broken(folder, error) from error
    return history


def load_weights(folder: Path, module: nn.Module) -> None:
    """Fill the module only. Raises WeightsError where the checkpoint is damaged."""
    try:
        module.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _broken(folder, error) from error


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return one entry for each finished epoch."""
    history = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    if not isinstance(history, list):
        raise ValueError(f"{HISTORY} is not a list")
    return history


def _broken(folder: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"the checkpoint {folder} cannot be read",
        got=brief(error),
        expected=f"{WEIGHTS}, {OPTIMIZER} and {HISTORY} of the same model",
        do="delete this stage's folder; the stage starts again from the one before it",
    )
