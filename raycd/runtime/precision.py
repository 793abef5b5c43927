"""What `precision: auto` means on the connected cluster, asked before workers start.

A result depends on it, so it is settled before settings become fingerprints and names of folders,
and all workers of a stage compute alike. A card itself is asked: the driver need not have one.
What was computed in either arithmetic is what auto asks for: neither makes a stage run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import ray
import torch

from raycd import progress
from raycd.config import Config
from raycd.errors import ConfigError, brief
from raycd.model import precision
from raycd.model.precision import Arithmetic
from raycd.runtime import cluster

T = TypeVar("T")

PATIENCE_S = 5.0  # before it is said that a GPU is waited for


def settled(config: Config) -> Config:
    """Return the configuration with fp32 or bf16 wherever it says auto.

    It must be called while connected. Of cards that differ, one is asked.

    Raises:
        ConfigError: The workers' torch cannot use the GPUs that Ray sees.
    """
    if not cluster.uses_gpu(config.compute):
        return precision.in_place_of_auto(config, "fp32")
    job = ray.get_runtime_context().get_job_id()
    return precision.in_place_of_auto(config, _of_a_card(job, config.compute.gpus_per_worker))


def ways(config: Config, of: Callable[[Config], T]) -> list[T]:
    """Return what `of` makes of each configuration that `settled` may return, once if it is equal.

    Nothing is asked.
    """
    kinds = (precision.in_place_of_auto(config, kind) for kind in precision.ARITHMETICS)
    one, other = map(of, kinds)
    return [one] if one == other else [one, other]


def entry(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a stage's record says of its precision, of the settings that it depends on.

    That of each, by its section, where a stage trains in one and embeds in another.
    """
    names = [name for name in settings if name.endswith(".precision")]
    found = {name.partition(".")[0]: settings[name] for name in names}
    kinds = set(found.values())
    return {"precision": found if len(kinds) > 1 else kinds.pop()} if kinds else {}


@lru_cache(maxsize=8)
def _of_a_card(job: str, gpus: float) -> Arithmetic:
    remote: Any = ray.remote(num_cpus=0, num_gpus=gpus)(_own)
    asked = remote.remote()
    if not ray.wait([asked], timeout=PATIENCE_S)[0]:
        progress.say("waiting for a GPU: none is free, or its machine is being started")
    found: Arithmetic = ray.get(asked)
    return found


def _own() -> Arithmetic:
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        raise ConfigError(
            "torch cannot use the GPU that Ray has found",
            got=f"torch {torch.__version__}: {brief(error)}",
            expected="a torch with CUDA, and a driver that is new enough for it",
            do="install another one of them, or give --compute.device cpu",
        ) from error
    return precision.of("auto", torch.device("cuda"))
