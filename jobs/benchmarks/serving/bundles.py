"""What is served and what is asked: bundles with a large gallery, and whole HTTP requests."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import torch

from raycd import bundle
from raycd.config import Config, EncoderConfig
from raycd.data.demo.drawing import draw
from raycd.data.demo.garments import CATEGORIES, changed, random_garment
from raycd.data.demo.wording import compare
from raycd.model import encoder, fusion
from raycd.model.fusion import HeadConfig

GALLERY = 20_000
SPREAD = 0.3  # of the noise around a real feature, in its own standard deviations
REQUESTS, KNOWN_TEXTS = 512, 16  # of each kind; distinct texts of the kinds that repeat them
KINDS = ("picture, new text", "image_id, new text", "picture, known text", "image_id, known text")


def image_ids(size: int = GALLERY) -> list[str]:
    """Return the ids of every gallery here."""
    return [f"G{number:06d}" for number in range(size)]


def filled(source: Path, folder: Path, size: int = GALLERY) -> None:
    """Write the bundle `source` into `folder` with `size` images: its own, then noisy copies."""
    loaded, gallery = bundle.load(source), bundle.read_gallery(source)
    own = bundle.gallery_features(gallery)
    rows = np.arange(size) % len(own)
    features = own[rows]
    noise = np.random.default_rng(0).standard_normal(features.shape, dtype=np.float32)
    features[len(own) :] += SPREAD * own.std(axis=0) * noise[len(own) :]
    column = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), own.shape[1])
    gallery = gallery.take(rows)
    for name, values in (("image_id", pa.array(image_ids(size))), ("feature", column)):
        gallery = gallery.set_column(gallery.schema.get_field_index(name), name, values)
    manifest, model = loaded.manifest, (loaded.encoder, loaded.head, loaded.head_config)
    texts = manifest.example_texts
    bundle.write(folder, *model, gallery, loaded.config, manifest.metrics, example_texts=texts)


def random(name: str, folder: Path, size: int = GALLERY, *, configs: str = "") -> None:
    """Write a bundle of random weights; `name` is known to open_clip or a file in `configs`."""
    torch.manual_seed(0)
    config = Config(preset="demo", encoder=EncoderConfig(name=name, pretrained="", configs=configs))
    clip = encoder.create(config.encoder)
    head = HeadConfig.of(config.stage2, clip.dim)
    features = np.random.default_rng(0).standard_normal((size, clip.dim), dtype=np.float32)
    labels = [[CATEGORIES[number % len(CATEGORIES)]] for number in range(size)]
    columns = (image_ids(size), labels, [None] * size, features, clip.fingerprint())
    gallery = bundle.gallery_table(*columns)
    bundle.write(folder, clip, fusion.create(head).eval(), head, gallery, config, {})


def write_requests(folder: Path, ids: Sequence[str], side: int) -> None:
    """Write REQUESTS files of each kind into `folder` (created): POST /v1/search, whole.

    Pictures are JPEG of side x side pixels; load.lua replaces each NNNNNNNNN by a number.
    """
    rng = np.random.default_rng(0)
    pictures, drawn = list[bytes](), set[str]()
    for number in range(REQUESTS):
        garment = random_garment(rng, CATEGORIES[number % len(CATEGORIES)])
        draw(rng, garment, side).save(picture := BytesIO(), "JPEG", quality=92)
        pictures.append(picture.getvalue())
        drawn.update(compare(rng, garment, changed(rng, garment, 2)))
    texts, order = sorted(drawn), rng.permutation(len(ids))
    for kind in KINDS:
        (folder / kind).mkdir(parents=True)
        for number, picture_bytes in enumerate(pictures):
            new = f"{texts[number % len(texts)]}, number NNNNNNNNN"
            query = {"text": new if "new" in kind else texts[number % KNOWN_TEXTS], "top_k": "10"}
            url = "http://127.0.0.1/v1/search"
            if kind.startswith("picture"):
                image = ("picture.jpg", picture_bytes, "image/jpeg")
                request = httpx.Request("POST", url, data=query, files={"image": image})
            else:
                body = query | {"image_id": ids[order[number % len(ids)]], "top_k": 10}
                request = httpx.Request("POST", url, json=body)
            lines = [f"{name}: {value}\r\n" for name, value in request.headers.items()]
            head = f"POST /v1/search HTTP/1.1\r\n{''.join(lines)}\r\n".encode()
            (folder / kind / f"{number:04d}").write_bytes(head + request.read())
