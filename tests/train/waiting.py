"""How often the inner loop asks tensors for their numbers; each time, a GPU would be waited for."""

from __future__ import annotations

from typing import Any, Self

import pytest
import torch
from torch.overrides import TorchFunctionMode

from raycd.model import short_texts
from raycd.train.batches import batch_sizes
from raycd.train.loop import LOOK_EVERY, Loop, Schedule
from raycd.train.task import Silence, Task

ASKS = {
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
}

NO_GPU = not torch.cuda.is_available()
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(NO_GPU, reason="there is no GPU here")),
]


class Asked(TorchFunctionMode):
    """A count of the questions, and of numbers that are copied to a device, inside of the block.

    Texts are read whole in it, as on GPUs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._as_on_gpus = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        self._as_on_gpus.setattr(short_texts, "ON", ())
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]  # torch's
        self._as_on_gpus.undo()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += getattr(func, "__name__", "") in ASKS or func is torch.tensor
        return func(*args, **(kwargs or {}))


class Noting(Silence):
    """A bar that notes how many questions there were until each step's end.

    With a GPU, torch raises an error where a step waits for it that does not look at the losses.
    """

    def __init__(self, asked: Asked, steps: int) -> None:
        self.asked, self.steps = asked, steps
        self.counts: list[int] = []

    def advance(self, n: int = 1, **shown: float | int | str) -> None:
        self.counts.append(self.asked.count)
        if torch.cuda.is_available():
            following = len(self.counts) + 1
            torch.cuda.set_sync_debug_mode("default" if self.looks(following) else "error")

    def looks(self, step: int) -> bool:
        return step % LOOK_EVERY == 1 or step >= self.steps


def asked_by_each_step(task: Task[Any], batch_size: int) -> list[int]:
    """Train an epoch, and return the questions of each step that does not look at the losses."""
    steps = len(batch_sizes(task.count(0), batch_size))
    with Asked() as asked:
        bar = Noting(asked, steps)
        schedule = Schedule(1, batch_size, 1e-3, seed=0)
        Loop(task, schedule, bar=lambda total, start: bar).run()
    assert len(bar.counts) == steps > 3
    return [
        after - before
        for step, (before, after) in enumerate(zip(bar.counts, bar.counts[1:], strict=False), 2)
        if not bar.looks(step)
    ]
