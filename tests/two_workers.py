"""Two workers of torch.distributed, as forks of a process that has imported torch once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import set_forkserver_preload
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes


def run_two(work: Callable[..., None], *given: Any) -> None:
    """Run work(number, *given) in two connected processes, of the numbers 0 and 1.

    `work` is a function of a module, which the processes import.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    set_forkserver_preload(["raycd.train.fuse"])  # takes seconds, once for all tests of a process
    start_processes(  # type: ignore[no-untyped-call]  # torch's
        _connected, (port, work, given), nprocs=2, start_method="forkserver"
    )


def _connected(number: int, port: int, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=number,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    work(number, *given)
    distributed.destroy_process_group()
