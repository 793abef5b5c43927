"""The middle of an epoch: how far it is, what it has measured, the random states there."""

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
class MidEpoch:
    """Where all workers are after some batches of an epoch.

    Only numbers that training draws from torch's generators count: order, texts and targets of an
    epoch follow from its seed alone.
    """

    measured_WB2: torch.Tensor
    """Loss and gradient's norm of each of the B batches that are done, on each of the W workers."""
    seconds: float
    """What the epoch has taken."""
    random: Sequence[Mapping[str, torch.Tensor]]
    """The states of each worker's generators: cpu, and cuda where it has a GPU."""

    @property
    def batches(self) -> int:
        """How many batches of the epoch are done."""
        return self.measured_WB2.shape[1]

    @classmethod
    def gathered(cls, measured: Sequence[torch.Tensor], seconds: float) -> MidEpoch:
        """Return the state that all workers have reached together; each of them calls it."""
        own_B2 = torch.stack(list(measured)).cpu()
        states = {"cpu": torch.get_rng_state()}
        if measured[0].is_cuda:
            states["cuda"] = torch.cuda.get_rng_state(measured[0].device)
        own = (own_B2, states)
        everyone = [own]
        if world_size() > 1:
            everyone = [own] * world_size()
            distributed.all_gather_object(everyone, own)
        return cls(
            torch.stack([theirs for theirs, _ in everyone]),
            seconds,
            [states for _, states in everyone],
        )

    def measured(self, device: torch.device) -> list[torch.Tensor]:
        """Return what this worker has measured; of another number of workers, the mean."""
        same = len(self.measured_WB2) == world_size()
        own_B2 = self.measured_WB2[rank()] if same else self.measured_WB2.mean(0)
        return list(own_B2.to(device))

    def restore_random(self, device: torch.device) -> None:
        """Set this worker's generators, unless it is that of another number of workers."""
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
        save_file({"measured": self.measured_WB2, **random}, path, about)

    @classmethod
    def read(cls, path: Path) -> MidEpoch:
        """Read what `write` has written.

        Raises OSError, SafetensorError, RuntimeError, LookupError, TypeError, ValueError.
        """
        with safe_open(path, "pt") as file:
            # Copies, for what is read keeps its file mapped
            measured_WB2 = file.get_tensor("measured").clone()
            random: list[dict[str, torch.Tensor]] = [{} for _ in measured_WB2]
            for key in file.keys():  # noqa: SIM118  (it is no mapping)
                name, _, worker = key.partition(".")
                if worker:
                    random[int(worker)][name] = file.get_tensor(key).clone()
            for states in random:  # raises now what would end every try in `restore_random`
                torch.Generator().set_state(states["cpu"])
            return cls(measured_WB2, float(file.metadata()["seconds"]), random)
