"""Encoders of other packages, found by the entry points of the group `raycd.encoders`.

An entry point's name is what `encoder.name` says; its value is a module, or any object, that is a
`Plugin`. In the package's pyproject.toml:

    [project.entry-points."raycd.encoders"]
    toy = "toy_encoder"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from raycd.config import EncoderConfig
from raycd.data.preprocess import Preprocess
from raycd.errors import ConfigError, WeightsError
from raycd.model import entries

GROUP = "raycd.encoders"
BUILT_IN = {"sentence_transformers": "raycd.model.joint"}
KIND = "raycd_encoder"  # names the entry point in a saved model configuration


class TextTokenizer(Protocol):
    """A tokenizer. It may be asked in any thread, and can be pickled."""

    files: dict[str, bytes]
    """Name -> content of the files that it is made of; they are saved, and given to `build`."""

    @property
    def padding(self) -> int:
        """Return the token that fills a text up to L."""
        ...

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return tokens (B, L) int64; longer texts are cut."""
        ...

    def truncates(self, text: str) -> bool:
        """Return whether a text is cut."""
        ...


@dataclass(frozen=True)
class Parts:
    """What an encoder is made of.

    `clip` has `visual`, its image encoder, and, as open_clip's models,

        encode_image(images (B, 3, H, W) float32, normalize=False) -> (B, D)
        encode_text(tokens (B, L) int64, normalize=False) -> (B, D)
        set_grad_checkpointing(enable)

    An encoder that composes image and text by itself has also

        compose(images (B, 3, H, W), tokens (B, L)) -> (B, D)

    and one that keeps files of its own, save_files(folder).
    """

    clip: nn.Module
    tokenizer: TextTokenizer
    preprocess: Preprocess
    model_config: dict[str, Any]
    """JSON values, of which `build` makes the same architecture again; embed_dim is D."""


class Plugin(Protocol):
    """What an entry point names."""

    def load(self, config: EncoderConfig) -> Parts:
        """Return the encoder with its weights; `config.pretrained` is the plugin's to read."""
        ...

    def build(
        self, model_config: Mapping[str, Any], files: Mapping[str, bytes], folder: Path
    ) -> Parts:
        """Return the encoder that was saved into `folder`, with any weights and preprocessing.

        The saved ones take their place next.
        """
        ...


def names() -> list[str]:
    """Return the names of the encoders of other packages, the installed ones and BUILT_IN."""
    return sorted({*entries.found(GROUP), *BUILT_IN})


def load(config: EncoderConfig) -> Parts:
    """Return the encoder that an entry point is named as.

    Where TargetPad is asked for, and the encoder's preprocessing is without it, that of
    `Preprocess.with_target_pad` takes its place. Raises WeightsError, and ConfigError for a setting
    that the encoder cannot follow.
    """
    if config.configs:
        raise ConfigError(
            f"encoder.configs describes architectures of open_clip, and {config.name} is none",
            got=config.configs,
            expected="no encoder.configs",
            do="leave it out, or take a model of open_clip",
        )
    parts = _plugin(config.name).load(config)
    preprocess = parts.preprocess
    if config.padding is not None and preprocess.target_pad != config.padding:
        preprocess = preprocess.with_target_pad(config.padding)
    about = {**parts.model_config, KIND: config.name}
    return Parts(parts.clip, parts.tokenizer, preprocess, about)


def build(model_config: dict[str, Any], files: Mapping[str, bytes], folder: Path) -> Parts:
    """Return a saved encoder. Raises WeightsError where its package is not installed."""
    parts = _plugin(str(model_config[KIND])).build(model_config, files, folder)
    return Parts(parts.clip, parts.tokenizer, parts.preprocess, model_config)


def _plugin(name: str) -> Plugin:
    plugin: Plugin
    if name in BUILT_IN:
        plugin = import_module(BUILT_IN[name])
        return plugin
    found = entries.found(GROUP)
    if name not in found:
        raise WeightsError(
            "the encoder is of a package that is not installed",
            got=name,
            expected=f"one of {', '.join(found)}" if found else f"a package with {GROUP}",
            do="install the package that adds it",
        )
    plugin = entries.load(found[name], "the encoder", WeightsError)
    return plugin
