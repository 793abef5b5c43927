"""A trained model on data that it was not trained with: a test split, or another data set.

Nothing is kept: the images and texts of the split are embedded each time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from raycd import bundle, features, scratch
from raycd.config import Config
from raycd.data.missing import ImageReport
from raycd.data.read import read
from raycd.data.schema import Dataset
from raycd.evaluate import cached_query
from raycd.features import Features
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.runtime import cluster, embedding
from raycd.runtime.evaluation import Variant
from raycd.runtime.stages import FINE_TUNED, IMAGES, TEXTS, Context, own_device


@dataclass(frozen=True)
class Model:
    """An encoder, and the head that belongs to it."""

    encoder: Encoder
    head: nn.Module
    name: str  # of the head

    @classmethod
    def of_run(cls, context: Context) -> Model:
        """Return the model of a run that has trained its head."""
        encoder = encoders.load_saved(context.run.local("stage1") / "encoder")
        head, config = fusion.load(context.run.local("stage2") / "head", dim=encoder.dim)
        return cls(encoder, head, config.name)

    @classmethod
    def of_bundle(cls, folder: str) -> Model:
        """Return the model of a bundle. Raises WeightsError where it is damaged."""
        loaded = bundle.load(Path(folder))
        return cls(loaded.encoder, loaded.head, loaded.head_config.name)


def dataset(config: Config, split: str) -> Dataset:
    """Read one split of the data set of a configuration. Raises DataError as the readers do."""
    return read(config.data, splits=(split,))


def variants(
    model: Model, data: Dataset, split: str, config: Config
) -> tuple[list[Variant], ImageReport]:
    """Embed a split on Ray; return the fine-tuned sum and the head, and the missing images."""
    paths = dict(
        zip(data.images["image_id"].to_pylist(), data.images["path"].to_pylist(), strict=True)
    )
    wanted = dict.fromkeys(data.images_of(split))
    texts = dict.fromkeys(row["text"] for row in data.queries(split, both_orders=True))
    images, missing, text_features = _embedded(
        model.encoder, {image_id: paths[image_id] for image_id in wanted}, texts, config
    )
    device = own_device(config)
    total = fusion.create(fusion.HeadConfig("sum", model.encoder.dim))
    found = [
        Variant(name, images, cached_query(fuse.to(device).eval(), images, text_features, device))
        for name, fuse in ((FINE_TUNED, total), (model.name, model.head))
    ]
    return found, missing


def _embedded(
    encoder: Encoder, paths: dict[str, str | None], texts: Iterable[str], config: Config
) -> tuple[Features, ImageReport, Features]:
    with scratch.folder() as folder, cluster.connected():
        features.write(folder / IMAGES, embedding.embed_images(paths, encoder, config))
        features.write(folder / TEXTS, embedding.embed_texts(list(texts), encoder, config))
        images, missing = features.read(folder / IMAGES)
        text_features, _ = features.read(folder / TEXTS)
    return images, missing, text_features
