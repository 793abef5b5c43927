"""torch.compile where it repays its minute, and once for a stage.

A function is compiled for one size of batches. An epoch's last, smaller batch runs as it is:
another compilation would take longer than many epochs of such batches. Modules keep their names,
so weights and checkpoints are the same, compiled or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from raycd import progress
from raycd.config import Compile
from raycd.data import preprocess
from raycd.errors import ConfigError, brief
from raycd.model.encoder import Encoder
from raycd.model.private import backward_at_once, compile_error

P = ParamSpec("P")
R = TypeVar("R")

BACKEND = "inductor"
SECONDS = 60.0  # of one compilation: 46 to 65 for RN50x4 on an H200 (docs/gpu.md)
GAIN = 1.2  # how many times as fast a step is afterwards, at least: 1.2 to 2.2 there
IMAGES = 600_000  # of an encoding worker: a compiled ResNet saves a tenth of a millisecond each


class Compilation:
    """The decision whether a training is compiled: made at its beginning, or by auto on the way.

    Args:
        compile: Called as compile(must), see `once`, where it shall be compiled from now on.
        wanted: The setting.
    """

    def __init__(
        self, compile: Callable[[bool], object], wanted: Compile, device: torch.device
    ) -> None:
        self._compile = compile
        self.undecided = wanted == "auto" and device.type == "cuda"
        if wanted is True:
            compile(True)

    def consider(self, seconds: float, left: int) -> None:
        """Compile if `left` steps of so many seconds each are enough to repay it."""
        self.undecided = False
        if repays(seconds * left):
            self._compile(False)


def repays(seconds: float) -> bool:
    """Tell whether work that takes so long uncompiled is done sooner compiled."""
    return seconds * (1 - 1 / GAIN) > SECONDS


def encode_compiled(encoder: Encoder, must: bool, *, trains: bool = False) -> Encoder:
    """Let an encoder encode images and tokens compiled; return it. A second call does nothing.

    Args:
        must: See `once`.
        trains: See `once`.
    """
    # Not as its decorator, which would take every process that reads images a second.
    torch.compiler.assume_constant_result(preprocess.constant)  # type: ignore[no-untyped-call]  # torch's
    for name in ("encode_images", "encode_tokens"):
        if name not in vars(encoder):
            setattr(encoder, name, once(getattr(encoder, name), must, trains=trains))
    return encoder


def once(function: Callable[P, R], must: bool, *, trains: bool) -> Callable[P, R]:
    """Return the function compiled for the largest batches that it is given, as it is for others.

    Args:
        must: Raise ConfigError where it, or its backward pass, cannot be compiled; else it is said,
            and it runs as it is.
        trains: It is compiled to train, and runs as it is in inference mode, where epochs are
            judged; else the other way round.
    """
    compiled: Callable[P, R] | None = torch.compile(function, dynamic=False, backend=BACKEND)
    most, size = 0, tuple[tuple[int, ...], ...]()
    ran = False

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal compiled, most, size, ran
        if compiled is None or torch.is_inference_mode_enabled() == trains:
            return function(*args, **kwargs)
        own = _sizes((args, kwargs))
        rows = max((shape[0] for shape in own if shape), default=0)
        if rows > most:
            most, size = rows, own
        if own != size:
            return function(*args, **kwargs)
        try:
            with backward_at_once():
                found = compiled(*args, **kwargs)
            ran = True
            return found
        except RuntimeError as error:  # of its first run, too: a kernel may ask too much of a card
            failed = isinstance(error, compile_error())
            if not failed and (must or ran or isinstance(error, torch.OutOfMemoryError)):
                raise
            if must:
                raise ConfigError(
                    "the model cannot be compiled here",
                    got=brief(error),
                    expected="a C++ compiler, and Triton for GPUs",
                    do="install them, or set compile auto or false",
                ) from error
            progress.say(f"warning: it runs uncompiled: {brief(error)}")
            compiled = None
            return function(*args, **kwargs)

    return called


def _sizes(value: object) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of all tensors in arguments, in their order; () for what is none."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape),)
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return tuple(size for one in value for size in _sizes(one))
    return ((),)
