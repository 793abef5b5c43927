"""The weights that a run begins with: pre-trained ones, or those of a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raycd import bundle
from raycd.config import Config
from raycd.errors import ConfigError, brief
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.fusion import Head
from raycd.runtime.stages.context import own_device
from raycd.train.pretrain import DEMO_MODEL, cached

HEAD = "head"  # of the bundle, in the folder of the stage `encoder`


def load_encoder(config: Config) -> tuple[Encoder, str]:
    """Load the encoder of the settings, before any training; return it and its model's name."""
    settings = config.encoder
    if settings.bundle:
        manifest = bundle.verify(Path(settings.bundle))
        return bundle.load_encoder(Path(settings.bundle), manifest), manifest.encoder.name
    if settings.pretrained == "demo":
        found = cached(config.pretrain, settings.padding, own_device(config))
        settings = settings.model_copy(update={"name": DEMO_MODEL, "pretrained": str(found)})
    loaded = encoders.load(settings)
    loaded.preprocess = replace(loaded.preprocess, reduced=settings.reduced)
    return loaded, settings.name


def hashes(config: Config) -> list[str]:
    """Return the hashes of the bundle's files that a run begins with; none where it has no bundle.

    Raises WeightsError where its manifest cannot be read.
    """
    if not config.encoder.bundle:
        return []
    files = bundle.read_manifest(Path(config.encoder.bundle)).files
    return [files[name] for name in sorted(files) if name.startswith(("encoder/", f"{HEAD}/"))]


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
