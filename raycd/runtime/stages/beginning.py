"""The weights that a run begins with: pre-trained ones, or those of a bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raycd import bundle
from raycd.config import Config
from raycd.data import files
from raycd.errors import ConfigError, brief
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.fusion import Head
from raycd.runtime.stages.context import own_device
from raycd.train.pretrain import DEMO_MODEL, cached

SOURCE = "source"  # of the record of the stage `encoder`
HEAD = "head"  # of the bundle, in the folder of the stage `encoder`


def load_encoder(config: Config) -> tuple[Encoder, str]:
    """Load the encoder of the settings, before any training; return it and its model's name."""
    settings = config.encoder
    if settings.bundle:
        folder = Path(settings.bundle)
        manifest = bundle.verify(folder)
        loaded, name = bundle.load_encoder(folder, manifest), manifest.encoder.name
        encoders.warn_of_padding(loaded, settings, folder)
    else:
        if settings.pretrained == "demo" and not encoders.brings_weights(settings.name):
            found = cached(config.pretrain, settings.padding, own_device(config))
            settings = settings.model_copy(update={"name": DEMO_MODEL, "pretrained": str(found)})
        loaded, name = encoders.load(settings), settings.name
    reduced = settings.reduced or loaded.preprocess.reduced  # a folder of raycd's keeps its own
    loaded.preprocess = replace(loaded.preprocess, reduced=reduced)
    return loaded, name


def source(config: Config) -> list[Any]:
    """Return the state of each file of this machine that the encoder of the settings is read from.

    Empty where there is none, as where weights have a tag or are no longer there: what was read of
    them stays.
    """
    settings = config.encoder
    if settings.bundle:
        return []  # whose files have hashes
    named = [settings.configs]
    if settings.name.startswith(encoders.LOCAL_DIR):
        named.append(settings.name.removeprefix(encoders.LOCAL_DIR))
    elif settings.pretrained != "demo" and not settings.name.startswith(encoders.HUB):
        named.append(settings.pretrained)
    # os.path is True of no tag, however long
    there = [Path(path) for path in map(os.path.expanduser, named) if path and os.path.exists(path)]
    every = [file for path in there for file in [path, *sorted(path.rglob("*"))]]
    found = [file for file in every if file.is_file()]
    states = files.states(map(str, found))
    return [[str(path), state] for path, state in zip(found, states, strict=True)]


def has_other_source(record: Mapping[str, Any], config: Config) -> bool:
    """Tell whether files have changed since the encoder of the stage's record was read from them.

    Where it is the same in spite of that, the stages after it stay done.
    """
    return SOURCE in record and source(config) not in ([], record[SOURCE])


def hashes(config: Config) -> list[str]:
    """Return the hashes of the bundle's files that a run begins with; none where it has no bundle.

    Raises WeightsError where its manifest cannot be read.
    """
    if not config.encoder.bundle:
        return []
    files = bundle.read_manifest(Path(config.encoder.bundle)).files
    found = [files[name] for name in sorted(files) if name.startswith(("encoder/", f"{HEAD}/"))]
    return [*found, "reduced"] if config.encoder.reduced else found  # which once did nothing


def keep_head(config: Config, folder: Path) -> None:
    """Copy the bundle's head into the folder of the stage `encoder`, where there is a bundle."""
    if config.encoder.bundle:
        fusion.save(*fusion.load(Path(config.encoder.bundle) / "head"), folder / HEAD)


def go_on(head: Head, config: Config, encoder: Path) -> Head:
    """Return a head with the weights of the bundle that the encoder is of, if it is of one.

    A head that trains begins anew where the bundle's has no weights. `encoder` is the folder of
    that stage. Raises ConfigError where they do not fit.
    """
    if not config.encoder.bundle:
        return head
    known, known_config = fusion.load(encoder / HEAD)
    if not known.state_dict() and config.stage2.epochs:
        return head
    try:
        head.load_state_dict(known.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            "the head does not fit that of encoder.bundle, from which it goes on",
            got=f"stage2.head {config.stage2.head}: {brief(error)}",
            expected=str(known_config),
            do="set stage2.head and its sizes as the bundle's head has them",
        ) from error
    return head


def unused(config: Config) -> list[str]:
    """Return the settings that came later and are as if they were not there."""
    settings = config.encoder
    return [f"encoder.{name}" for name in ("reduced", "bundle") if not getattr(settings, name)]
