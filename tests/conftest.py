"""What tests share: a cluster for the session, and a bundle small enough to be made in a second."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ["RAY_AUTH_MODE"] = os.environ.get("RAY_AUTH_MODE", "disabled")  # before ray is imported anywhere


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray of two CPUs."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@dataclass(frozen=True)
class TinyBundle:
    """A bundle of random weights and the images of its gallery."""

    folder: Path
    image_ids: list[str]
    images: list[Image.Image]


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """The demo's architecture with random weights, a small CLIP-CD head and twelve images. Do not write into it."""
    import torch

    from raycd.config import Config, EncoderConfig
    from raycd.model import bundle, encoder, fusion

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)) for _ in range(12)]
    image_ids = [f"image-{i}" for i in range(12)]
    clip = encoder.create(EncoderConfig(name="raycd-demo", pretrained=""))
    settings = fusion.HeadConfig("clip_cd", clip.dim, bilinear_dim=8, projection_dim=32, hidden_dim=32)
    with torch.inference_mode():
        features = clip.encode_images(torch.stack([clip.preprocess(image) for image in images])).numpy()
    categories = [["dress"] if i % 2 else ["shirt", "toptee"] for i in range(12)]
    gallery = bundle.gallery_table(image_ids, categories, [None] * 12, features, clip.fingerprint())
    config = Config(preset="demo", encoder=EncoderConfig(name="raycd-demo", pretrained=""))
    metrics = {"average": {"recall@10": 0.5}}
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    bundle.write(folder, clip, fusion.create(settings).eval(), settings, gallery, config, metrics)
    return TinyBundle(folder, image_ids, images)
