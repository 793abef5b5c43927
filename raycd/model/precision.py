"""The arithmetic that a setting `precision` stands for, on the device that computes.

auto is bf16 on GPUs that multiply it, and fp32 elsewhere: on most CPUs bf16 is the slower one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch

from raycd.config import Config, Precision

Arithmetic = Literal["fp32", "bf16"]
ARITHMETICS: tuple[Arithmetic, ...] = get_args(Arithmetic)
SECTIONS = ("adapt", "stage1", "embed", "stage2")  # those with a precision


def of(precision: Precision, device: torch.device) -> Arithmetic:
    """Return the arithmetic of a setting on `device`."""
    if precision != "auto":
        return precision
    # Emulated bf16 is slower than fp32
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if on_gpu else "fp32"


def use(precision: Precision, device: torch.device) -> Arithmetic:
    """Return the arithmetic of a setting on `device`, on which this process will compute in it.

    cuDNN rounds the factors of fp32 to TF32 unless it is told: from then on it does not.
    """
    found = of(precision, device)
    if found == "fp32" and device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return found


def before_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name as they were noted before there was auto: fp32 in its place.

    What is there in fp32 is what auto asks for.
    """
    names = {f"{section}.precision" for section in SECTIONS}
    return {
        name: "fp32" if value == "auto" and name in names else value
        for name, value in settings.items()
    }


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what settings by dotted name ask otherwise than before, for a person.

    auto is as fp32, and is shown as it is.
    """
    before, after = before_auto(then), before_auto(now)
    return [
        f"{name} {now.get(name)!r} instead of {then.get(name)!r}"
        for name in {**then, **now}
        if before.get(name) != after.get(name)
    ]


def in_place_of_auto(config: Config, arithmetic: Arithmetic) -> Config:
    """Return the configuration with `arithmetic` wherever it says auto."""
    sections = {name: getattr(config, name) for name in SECTIONS}
    changed = {
        name: section.model_copy(update={"precision": arithmetic})
        for name, section in sections.items()
        if section.precision == "auto"
    }
    return config.model_copy(update=changed) if changed else config
