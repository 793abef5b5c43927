"""The names of the fusion heads, ours and other packages', and how a head is saved and loaded."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from raycd.config import Stage2Config
from raycd.errors import ConfigError, WeightsError, brief
from raycd.model import entries
from raycd.model.fusion.head import Head
from raycd.model.weights import check_weights, save_weights

if sys.version_info >= (3, 14):  # where names are looked up only then
    import annotationlib

    _annotations = partial(annotationlib.get_annotations, format=annotationlib.Format.FORWARDREF)
else:
    from inspect import get_annotations as _annotations

GROUP = "raycd.heads"  # of entry points: name = "module:build"
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
    bilinear_dropout: float = 0.0
    """Dropout of the bilinear branch."""
    extra: Mapping[str, list[int]] = field(default_factory=dict)
    """Shapes, without B, of what the head needs beside pooled features (`Head.needs`)."""
    text: Mapping[str, Any] = field(default_factory=dict)
    """open_clip's configuration of the encoder whose text encoder the head has a copy of."""

    @classmethod
    def of(
        cls,
        config: Stage2Config,
        dim: int,
        extra: Mapping[str, list[int]] | None = None,
        text: Mapping[str, Any] | None = None,
    ) -> HeadConfig:
        """Return the head that stage 2's settings ask for, over features of size `dim`.

        `extra` are the shapes of what it needs beside them, `text` is the encoder's configuration.
        """
        return cls(
            config.head,
            dim,
            config.bilinear_dim,
            config.projection_dim,
            config.hidden_dim,
            config.dropout,
            config.bilinear_dropout,
            dict(extra or {}),
            dict(text or {}),
        )


Build = Callable[[HeadConfig], Head]
HEADS = (  # each is a file in this folder with a function `build`
    "clip_cd",
    "clvc_net",
    "combiner",
    "composeae",
    "cosmo",
    "datir",
    "dcnet",
    "hffca",
    "image_only",
    "joint",
    "lincir",
    "sac",
    "sum",
    "text_only",
    "tirg",
    "val",
)


def names() -> list[str]:
    """Return the names of the heads: our own, then those of other packages."""
    return [*HEADS, *(name for name in sorted(entries.found(GROUP)) if name not in HEADS)]


def head_class(name: str) -> type[Head]:
    """Return the class of a head, which says what it needs, without building one.

    Raises ConfigError for an unknown name, and for a head of another package that cannot be loaded.
    """
    build = _build(name)
    try:
        made = _returned(build)
    except Exception as error:  # of the other package's annotation
        made = error
    if not (isinstance(made, type) and issubclass(made, Head)):
        raise ConfigError(
            f"the head {name} does not say of which class it is",
            got=f"a function that returns {made!r}",
            expected="a return annotation that is a subclass of raycd.model.fusion.Head",
            do="annotate its function: def build(config: HeadConfig) -> MyHead",
        )
    return made


def _returned(build: Build) -> object:
    """Return what a function is annotated to return.

    Its arguments' types may be unknown here: a package may import HeadConfig for type checkers.
    """
    own = SimpleNamespace(__annotations__={"return": _annotations(build).get("return", Any)})
    return get_type_hints(own, globalns=getattr(unwrap(build), "__globals__", {}))["return"]


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


def _build(name: str) -> Build:
    """Return the function that builds a head. Its return annotation is the head's class."""
    if name in HEADS:
        own: Build = import_module(f"{__package__}.{name}").build
        return own
    found = entries.found(GROUP).get(name)
    if not found:
        known = names()
        near = difflib.get_close_matches(name, known, n=1)
        raise ConfigError(
            "stage2.head names no fusion head",
            got=name,
            expected=f"one of {', '.join(known)}",
            do=f"did you mean {near[0]}?" if near else None,
        )
    foreign: Build = entries.load(found, "the head", ConfigError)
    return foreign


def save(head: nn.Module, config: HeadConfig, folder: Path) -> None:
    """Write weights and settings into `folder` (created)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(head, folder / WEIGHTS)
    (folder / SETTINGS).write_text(json.dumps(asdict(config), indent=1), encoding="utf-8")


def load(folder: Path, *, dim: int | None = None) -> tuple[Head, HeadConfig]:
    """Load the head that `save` wrote, in eval mode.

    Raises WeightsError where it is damaged or not made for features of size `dim`.
    """
    try:
        config = HeadConfig(**json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
        _check_installed(config.name, folder)
        head = create(config)
        head.load_state_dict(load_file(folder / WEIGHTS))
    except _UNREADABLE as error:
        raise WeightsError(
            f"{folder} holds no readable fusion head",
            got=brief(error),
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


def _check_installed(name: str, folder: Path) -> None:
    known = names()
    if name not in known:
        raise WeightsError(
            f"{folder} holds a fusion head that is not installed here",
            got=name,
            expected=f"one of {', '.join(known)}",
            do=f"install the package that adds it (entry point group {GROUP})",
        )
