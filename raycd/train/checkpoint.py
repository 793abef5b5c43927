"""A training checkpoint without pickle: weights and optimizer as safetensors, history as JSON.

One inside of an epoch has its `MidEpoch`, too. A `TrainingState` is all of it in the memory of this
process, so that another thread can write it while the training goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from raycd.errors import WeightsError, brief
from raycd.train.mid_epoch import MidEpoch

WEIGHTS, OPTIMIZER, HISTORY = "weights.safetensors", "optimizer.safetensors", "history.json"
MID_EPOCH = "place.safetensors"
PINNED = 2**30  # bytes that are copied into pinned memory at once, at most
_DAMAGES = (OSError, RuntimeError, LookupError, TypeError, ValueError, SafetensorError)


@dataclass(frozen=True)
class TrainingState:
    """What a training goes on from."""

    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    """"<number of the parameter>.<name>" -> value."""
    history: Sequence[Mapping[str, Any]]
    """An entry for each finished epoch."""
    mid_epoch: MidEpoch | None = None
    """Where it is inside of the epoch after those; None: at its beginning."""
    source: Path = Path()
    """The folder that it was read from."""

    @classmethod
    def of(
        cls,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        history: Sequence[Mapping[str, Any]],
        mid_epoch: MidEpoch | None = None,
    ) -> TrainingState:
        """Copy the state of a training, from a GPU into pinned memory."""
        values = {
            f"{number}.{name}": torch.as_tensor(value)
            for number, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        state = cls(_copies(module.state_dict()), _copies(values), list(history), mid_epoch)
        if any(value.is_cuda for value in [*module.state_dict().values(), *values.values()]):
            torch.cuda.synchronize()  # copies into pinned memory are not waited for
        return state

    def write(self, folder: Path) -> None:
        """Write a checkpoint into `folder` (created); the history last."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.weights), folder / WEIGHTS)
        save_file(dict(self.optimizer), folder / OPTIMIZER)
        if self.mid_epoch is not None:
            self.mid_epoch.write(folder / MID_EPOCH)
        (folder / HISTORY).write_text(json.dumps(list(self.history)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> TrainingState:
        """Read a checkpoint. Raises WeightsError where it is damaged."""
        try:
            path = folder / MID_EPOCH
            return cls(
                load_file(folder / WEIGHTS),
                load_file(folder / OPTIMIZER),
                read_history(folder),
                MidEpoch.read(path) if path.exists() else None,
                folder,
            )
        except _DAMAGES as error:
            raise _broken(folder, error) from error

    def fill(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Fill module and optimizer. Raises WeightsError where they are others."""
        try:
            module.load_state_dict(self.weights)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in self.optimizer.items():
                number, name = key.split(".", 1)
                like = parameters[int(number)]
                # Fused optimizers take a moment for laid out as its parameter (channels last).
                # Copied in any case: what was read keeps its file mapped
                state.setdefault(int(number), {})[name] = (
                    torch.empty_like(like, dtype=value.dtype).copy_(value)
                    if value.shape == like.shape
                    else value.clone()
                )
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )
        except (RuntimeError, ValueError, IndexError) as error:
            raise _broken(self.source, error) from error


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


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # Laid out before they are copied: a copy from a GPU must not be read until it is there.
    # Pinned memory is copied to faster, and this process keeps it for ever
    pinned = sum(value.nbytes for value in tensors.values()) <= PINNED
    return {
        name: value.detach().contiguous().to("cpu", copy=True, non_blocking=pinned)
        for name, value in tensors.items()
    }


def _broken(folder: Path, error: Exception) -> WeightsError:
    return WeightsError(
        f"the checkpoint {folder} cannot be read",
        got=brief(error),
        expected=f"{WEIGHTS}, {OPTIMIZER} and {HISTORY} of the same model",
        do="delete it, then run the same command again: it goes on from another, if there is one",
    )
