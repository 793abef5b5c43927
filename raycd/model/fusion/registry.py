"""The names of the fusion heads, and how a head is saved and loaded."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from raycd.config import Stage2Config
from raycd.errors import ConfigError, WeightsError
from raycd.model.finite import check_weights

WEIGHTS, SETTINGS = "head.safetensors", "head.json"


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

    @classmethod
    def of(cls, config: Stage2Config, dim: int) -> HeadConfig:
        """Return the head that stage 2's settings ask for, over features of size `dim`."""
        return cls(
            config.head,
            dim,
            config.bilinear_dim,
            config.projection_dim,
            config.hidden_dim,
            config.dropout,
        )


HEADS = (
    "clip_cd",
    "combiner",
    "joint",
    "sum",
)  # each is a file in this folder with a function `build`


def names() -> list[str]:
    """Return the names of the heads."""
    return list(HEADS)


def create(config: HeadConfig) -> nn.Module:
    """Build a head with fresh weights.

    Raises ConfigError for an unknown name or impossible sizes.
    """
    if config.name not in HEADS:
        near = difflib.get_close_matches(config.name, HEADS, n=1)
        raise ConfigError(
            "stage2.head names no fusion head",
            got=config.name,
            expected=f"one of {', '.join(HEADS)}",
            do=f"did you mean {near[0]}?" if near else None,
        )
    build: Callable[[HeadConfig], nn.Module] = import_module(f"{__package__}.{config.name}").build
    return build(config)


def save(head: nn.Module, config: HeadConfig, folder: Path) -> None:
    """Write weights and settings into `folder` (created)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()},
        folder / WEIGHTS,
    )
    (folder / SETTINGS).write_text(json.dumps(asdict(config), indent=1), encoding="utf-8")


def load(folder: Path, *, dim: int | None = None) -> tuple[nn.Module, HeadConfig]:
    """Load the head that `save` wrote, in eval mode.

    Raises WeightsError where it is damaged or not made for features of size `dim`.
    """
    try:
        config = HeadConfig(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
        head = create(config)
        head.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, TypeError, RuntimeError, RecursionError, SafetensorError) as error:
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
