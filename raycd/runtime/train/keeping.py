"""What a training worker keeps and tells: checkpoints in the background, and its measurements."""

from __future__ import annotations

import errno
import math
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray.train
import torch
from safetensors import SafetensorError
from torch import distributed

from raycd.data.folder import is_local
from raycd.distributed import rank, world_size
from raycd.errors import RaycdError, RunError, brief
from raycd.runtime.train.checkpoints import Checkpoints, in_words
from raycd.train.checkpoint import TrainingState
from raycd.train.loop import EpochResult, Loop, best_epoch

ASK_EVERY = 5.0  # seconds between two questions for a notice, as often as Ray Train itself looks
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of errors
_NOTHING, _DUE, _ASK, _FAILED = 0, 1, 2, 4


class Stopped(Exception):
    """A training that all workers end together; `error` says why, on the first of them."""

    def __init__(self, error: RaycdError) -> None:
        super().__init__(str(error))
        self.error = error


class Keeper:
    """The `Watch` of a worker's loop. The first worker writes; all of them agree when.

    A state is copied by the training's own thread and written by another one, one at a time. One
    inside of an epoch that cannot be written is told and tried again later; that of an epoch's end
    ends the training, for a result may depend on it.

    Where epochs are short, not each one's end is written: only what may become the result is held
    in memory until a later one is, and the last one always is.

    Args:
        board: The `relay.Board` that the driver reads.
        minutes: Minutes between two checkpoints inside of an epoch; 0: none.
        share: Share of the time that may be spent on writing the ends of epochs; 1: each is
            written.
        every_steps: Steps between two measurements that are told; 0: none.
        notices: Whether Ray Train is to be asked if a machine of the training will go.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        board: Any,
        *,
        minutes: float,
        share: float,
        every_steps: int,
        notices: bool,
        device: torch.device,
    ) -> None:
        self._checkpoints, self._board, self._device = checkpoints, board, device
        self._world = world_size()
        self._seconds, self._share = 60 * minutes, share
        self._every_steps, self._notices = every_steps, notices
        self._kept = self._asked = time.monotonic()
        self._next_step = 0
        self._going: set[str] = set()  # machines whose notice has had its checkpoint
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[list[TrainingState]] | None = None
        self._is_epoch = False  # what is being written: an epoch's end
        self._best: TrainingState | None = None  # of the epochs whose end was not written yet
        self._took = 0.0  # seconds, for what was written last
        self._error: RaycdError | None = None
        # Before all else: `Failures` tells by its process whether an error is another one
        self.tell("worker", rank=rank(), where=socket.gethostname(), process=os.getpid())

    def restored(self) -> TrainingState | None:
        """Return the checkpoint to go on from, the same on all workers, and tell where that is."""
        state, names = None, [""]
        if rank() == 0:
            self._checkpoints.remove_halves()
            state, names[0], damaged = self._checkpoints.newest()
            for damage in damaged:
                self.tell("warning", text=f"a checkpoint is damaged and not used: {damage}")
            self.tell("began", start=in_words(names[0]), workers=world_size())
        if world_size() > 1:
            distributed.broadcast_object_list(names)
            if rank() != 0 and names[0]:
                state = self._checkpoints.read(names[0])
        return state

    def tell(self, kind: str, **what: Any) -> None:
        """Tell the driver, without waiting for it."""
        self._board.note.remote({"kind": kind, "when": time.time(), **what})

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Tell what was measured in a step, where it is time."""
        if self._every_steps and step >= self._next_step:
            self._next_step = step + self._every_steps
            self.tell("measured", step=step, values=dict(values))

    def wants(self) -> bool:
        """Return whether a checkpoint is to be kept now; all workers ask. Raises Stopped."""
        wanted = self._agreed(self._own_wish() if rank() == 0 else _NOTHING)
        if wanted & _ASK and self._will_go():
            return True
        return bool(wanted & _DUE)

    def keep(self, state: Callable[[], TrainingState]) -> None:
        """Write a checkpoint inside of an epoch in the background."""
        self._check_group()
        self._kept = time.monotonic()
        if rank() == 0:
            self.wait()
            self._write(state(), is_epoch=False)

    def ended(self, loop: Loop[Any], result: EpochResult) -> None:
        """Tell of an epoch; write its checkpoint in the background, or hold it. Raises Stopped."""
        first, is_last = rank() == 0, len(loop.history) == loop.schedule.epochs
        due = first and (is_last or self._share == 1.0 or self._has_time())
        failed = first and (self.wait() if due else self._failure()) is not None
        wish = (_FAILED if failed else self._time_to_ask()) if first else _NOTHING
        # An epoch of one batch is asked here alone
        will_go = bool(self._agreed(wish) & _ASK) and self._will_go()
        self._check_group()
        if not first:
            return
        if will_go and not due:
            due = True
            self.wait()
        is_best = result.selection is not None and best_epoch(loop.history) == result.epoch
        if is_best:
            self._best = None if due else loop.state()
        if due:
            self._write(loop.state(), is_epoch=True)
            self._kept = time.monotonic()
        self.tell("epoch", entry=result.to_dict())

    def close(self) -> None:
        """Wait until everything is written. Raises Stopped where the last epoch's end is not."""
        error = self.wait()
        if error is not None:
            raise Stopped(error)

    def give_up(self) -> None:
        """Write the best epoch until now, where it is held: an error ends the training here."""
        self.wait()
        if self._best is not None:
            self._write(is_epoch=True)
            self.wait()
        if self._best is not None:
            self.tell("warning", text="the checkpoint of the best epoch could not be written")

    def wait(self) -> RaycdError | None:
        """Wait for what is being written; return what ends the training, once and for all."""
        writing, self._writing = self._writing, None
        if writing is None:
            return self._error
        try:
            if any(state is self._best for state in writing.result()):
                self._best = None
        except (OSError, SafetensorError, RunError) as error:
            told_as = error if isinstance(error, RunError) else self._full(error)
            if self._is_epoch:
                self._error = told_as
            else:
                self.tell("warning", text=f"{told_as.what} ({brief(error)}); training goes on")
        return self._error

    def _failure(self) -> RaycdError | None:
        """Return what ends the training, as far as it is known without waiting."""
        is_over = self._writing is None or self._writing.done()
        return self.wait() if is_over else self._error

    def _has_time(self) -> bool:
        """Return whether an epoch's end is to be written; after `checkpoint_minutes` each is."""
        pause = min(self._took / self._share, self._seconds or math.inf)
        return self._failure() is None and self._writing is None and self._passed() >= pause

    def _passed(self) -> float:
        return time.monotonic() - self._kept

    def _own_wish(self) -> int:
        if self._failure() is not None:
            return _FAILED
        is_due = self._seconds and self._writing is None and self._passed() >= self._seconds
        return (_DUE if is_due else _NOTHING) | self._time_to_ask()

    def _time_to_ask(self) -> int:
        """Return _ASK where it is time to ask for a notice."""
        now = time.monotonic()
        if not self._notices or now - self._asked < ASK_EVERY:
            return _NOTHING
        self._asked = now
        return _ASK

    def _agreed(self, wish: int) -> int:
        """Return the wish of the first worker. Raises Stopped where it has failed."""
        self._check_group()
        if world_size() > 1:
            shared = torch.tensor(wish, device=self._device)
            distributed.broadcast(shared, 0)
            wish = int(shared)
        if wish & _FAILED:
            raise Stopped(self._error or RunError("another worker cannot write checkpoints"))
        return wish

    def _check_group(self) -> None:
        """Raise RuntimeError where Ray ends the workers.

        It takes torch's process group away beneath a training that still runs, which would go on as
        if it was alone, and keep its own losses for those of all.
        """
        if world_size() != self._world:
            raise RuntimeError("the workers of this training are being ended")

    def _will_go(self) -> bool:
        """Return whether a machine of the training has had notice since this was asked before."""
        found = ray.train.get_preemption_info()
        going = set(found.preempted_node_ids) - self._going if found is not None else set()
        if going and rank() == 0:
            self.tell("warning", text="a machine of the training will go: a checkpoint is kept")
        self._going |= going
        return bool(going)

    def _write(self, *states: TrainingState, is_epoch: bool) -> None:
        self._is_epoch = is_epoch
        held = () if self._best is None else (self._best,)
        self._writing = self._writer.submit(self._write_now, [*held, *states])

    def _write_now(self, states: list[TrainingState]) -> list[TrainingState]:
        """Write checkpoints, the earliest first; return them."""
        began = time.monotonic()
        for state in states:
            self._checkpoints.write(state)
            try:
                self._checkpoints.prune(state)
            except (OSError, RunError) as error:  # a disk or bucket where nothing may be removed
                text = (
                    f"an older checkpoint could not be removed ({brief(error)}); training goes on"
                )
                self.tell("warning", text=text)
        self._took = time.monotonic() - began
        return states

    def _full(self, error: Exception) -> RunError:
        where = self._checkpoints.uri
        if not is_local(where):  # what goes to a store is written on this machine first
            where = getattr(error, "filename", None) or tempfile.gettempdir()
        has_room = _number_of(error) not in _NO_ROOM
        first = "mend that" if has_room else "make room there"
        return RunError(
            "a checkpoint could not be written",
            got=brief(error),
            expected=f"a folder {'' if has_room else 'with room '}that can be written: {where}",
            do=f"{first}, then run the same command again: it goes on from the checkpoint before",
        )


def _number_of(error: Exception) -> int | None:
    """Return the system's number of an error, which that of safetensors has in its text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
