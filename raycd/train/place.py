"""A place inside of an epoch: how far it is, what it has measured, the random states there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed

from raycd.distributed import rank, world_size


@dataclass(frozen=True)
class Place:
    """Where all workers are after some batches of an epoch.

    Only numbers that training draws from torch's generators count: order, texts and targets of an
    epoch follow from its seed alone.
    """

    losses_WB: torch.Tensor
    """The loss of each of the B batches that are done, on each of the W workers."""
    seconds: float
    """What the epoch has taken."""
    random: Sequence[Mapping[str, torch.Tensor]]
    """The states of each worker's generators: cpu, and cuda where it has a GPU."""

    @property
    def batches(self) -> int:
        """How many batches of the epoch are done."""
        return self.losses_WB.shape[1]

    @classmethod
    def gathered(cls, losses: Sequence[torch.Tensor], seconds: float) -> Place:
        """Return the place that all workers have reached together; each of them calls it."""
        own_B = torch.stack(list(losses)).cpu()
        states = {"cpu": torch.get_rng_state()}
        if losses[0].is_cuda:
            states["cuda"] = torch.cuda.get_rng_state(losses[0].device)
        own = (own_B, states)
        everyone = [own]
        if world_size() > 1:
            everyone = [own] * world_size()
            distributed.all_gather_object(everyone, own)
        return cls(
            torch.stack([losses for losses, _ in everyone]),
            seconds,
            [states for _, states in everyone],
        )

    def losses(self, device: torch.device) -> list[torch.Tensor]:
        """Return the losses of this worker; of another number of workers, the mean over them."""
        same = len(self.losses_WB) == world_size()
        own_B = self.losses_WB[rank()] if same else self.losses_WB.mean(0)
        return list(own_B.to(device))

    def restore_random(self, device: torch.device) -> None:
        """Set this worker's generators, unless the place is that of another number of workers."""
        if len(self.random) != world_size():
            return
        own = self.random[rank()]
        torch.set_rng_state(own["cpu"])
        if "cuda" in own and device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], device)

    def write(self, path: Path) -> None:
        """Write a file of safetensors."""
        random = {
            f"{name}.{worker}": state
            for worker, states in enumerate(self.random)
            for name, state in states.items()
        }
        about = {"seconds": repr(self.seconds)}
        save_file({"losses": self.losses_WB, **random}, path, about)

    @classmethod
    def read(cls, path: Path) -> Place:
        """Read what `write` has written. Raises OSError, SafetensorError, KeyError, ValueError."""
        with safe_open(path, "pt") as file:
            losses_WB = file.get_tensor("losses")
            random: list[dict[str, torch.Tensor]] = [{} for _ in losses_WB]
            for key in file.keys():  # noqa: SIM118  (it is no mapping)
                name, _, worker = key.partition(".")
                if worker:
                    random[int(worker)][name] = file.get_tensor(key)
            return cls(losses_WB, float(file.metadata()["seconds"]), random)
