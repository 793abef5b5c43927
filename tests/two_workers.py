"""Workers of torch.distributed, as forks of a process that has imported torch once."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import set_forkserver_preload
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

_HEAVY = ["open_clip"]  # imported once for all processes where this one has it already


def run_two(work: Callable[..., None], *given: Any) -> None:
    """Run work(number, *given) in two connected processes, of the numbers 0 and 1.

    `work` is a function of a module, which the processes import.
    """
    run_workers(2, work, *given)


def run_workers(world: int, work: Callable[..., None], *given: Any) -> None:
    """Run work(number, *given) in `world` connected processes, as `run_two` does in two."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    # Takes seconds, once for all tests of a process
    set_forkserver_preload(["raycd.train.fuse", *(name for name in _HEAVY if name in sys.modules)])
    start_processes(  # type: ignore[no-untyped-call]  # torch's
        _connected, (port, world, work, given), nprocs=world, start_method="forkserver"
    )


def _connected(
    number: int, port: int, world: int, work: Callable[..., None], given: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=number,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    work(number, *given)
    distributed.destroy_process_group()
