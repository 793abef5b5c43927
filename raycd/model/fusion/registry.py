"""The names of the fusion heads, and how a head is saved and loaded."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from raycd.config import Stage2Config
from raycd.errors import ConfigError, WeightsError
from raycd.model.finite import check_weights
from raycd.model.fusion.head import Head

WEIGHTS, SETTINGS = "head.safetensors", "head.json"
_UNREADABLE = (
    *(OSError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError),
    SafetensorError,
)


@dataclass(frozen=True)
class HeadConfig:
    """The shape of a head. Sizes of 0 mean the head's own default."""

    name: str
    dim: int
    """D, the size of a feature."""
    bilinear_dim: int = 64
    """K of eqs 5 to 7."""
    projection_dim: int = 0
    """Combiner: size of each modality's projection; 0 means 4 D."""
    hidden_dim: int = 0
    """Combiner: size of the hidden layers; 0 means 8 D."""
    dropout: float = 0.5
    """Dropout of the hidden layers."""
    extra: Mapping[str, list[int]] = field(default_factory=dict)
    """Shapes, without B, of what the head needs beside pooled features (`Head.needs`)."""

    @classmethod
    def of(
        cls, config: Stage2Config, dim: int, extra: Mapping[str, list[int]] | None = None
    ) -> HeadConfig:
        """Return the head that stage 2's settings ask for, over features of size `dim`.

        `extra` are the shapes of what it needs beside them.
        """
        return cls(
            config.head,
            dim,
            config.bilinear_dim,
            config.projection_dim,
            config.hidden_dim,
            config.dropout,
            dict(extra or {}),
        )


HEADS = (  # each is a file in this folder with a function `build`
    "clip_cd",
    "combiner",
    "sum",
)


def names() -> list[str]:
    """Return the names of the heads."""
    return list(HEADS)


def head_class(name: str) -> type[Head]:
    """Return the class of a head, which says what it needs, without building one.

    Raises ConfigError for an unknown name.
    """
    made: type[Head] = get_type_hints(_build(name))["return"]
    return made


def create(config: HeadConfig) -> Head:
    """Build a head with fresh weights.

    Raises ConfigError for an unknown name, impossible sizes, or features that it needs and that
    `config.extra` lacks.
    """
    lacking = sorted(head_class(config.name).needs - config.extra.keys())
    if lacking:
        raise ConfigError(
            f"the head {config.name} needs more of the encoder than pooled features",
            got=f"no shape of: {', '.join(lacking)}",
            expected="their shapes in HeadConfig.extra",
            do="train it by the pipeline, which measures them",
        )
    return _build(config.name)(config)


def _build(name: str) -> Callable[[HeadConfig], Head]:
    """Return the function that builds a head. Its return annotation is the head's class."""
    if name not in HEADS:
        near = difflib.get_close_matches(name, HEADS, n=1)
        raise ConfigError(
            "stage2.head names no fusion head",
            got=name,
            expected=f"one of {', '.join(HEADS)}",
            do=f"did you mean {near[0]}?" if near else None,
        )
    build: Callable[[HeadConfig], Head] = import_module(f"{__package__}.{name}").build
    return build


def save(head: nn.Module, config: HeadConfig, folder: Path) -> None:
    """Write weights and settings into `folder` (created)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()},
        folder / WEIGHTS,
    )
    (folder / SETTINGS).write_text(json.dumps(asdict(config), indent=1), encoding="utf-8")


def load(folder: Path, *, dim: int | None = None) -> tuple[Head, HeadConfig]:
    """Load the head that `save` wrote, in eval mode.

    Raises WeightsError where it is damaged or not made for features of size `dim`.
    """
    try:
        config = HeadConfig(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
        head = create(config)
        head.load_state_dict(load_file(folder / WEIGHTS))
    except _UNREADABLE as error:
        raise WeightsError(
            f"{folder} holds no readable fusion head",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            expected=f"{SETTINGS} and {WEIGHTS}, as stage 2 writes them",
            do="run stage 2 again",
        ) from error
    check_weights(head, f"the fusion head {folder / WEIGHTS}", do="run stage 2 again")
    if dim is not None and config.dim != dim:
        raise WeightsError(
            "the fusion head and the encoder are of different size",
            got=f"a head for features of {config.dim}, an encoder of {dim}",
            do="train the head on this encoder's features, "
            "or take the encoder that it was trained on",
        )
    return head.eval(), config
