"""Builds the fixtures of this folder with whichever version of raycd is on PYTHONPATH.

    git worktree add --detach /tmp/previous COMMIT
    PYTHONPATH=/tmp/previous python tests/previous/make.py FOLDER

FOLDER receives `written.tar.xz`, a bundle (bundle/) and a gallery database (gallery.sqlite) as that
version writes them, and `written.json`, what that version found in them. `test_previous.py` reads
them with the version of today.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import raycd
from raycd.config import Config, EncoderConfig
from raycd.model import encoder, fusion


def first_of(*modules: str) -> Any:
    """Import the first of the modules that the version of raycd has."""
    for module in modules[:-1]:
        with suppress(ImportError):
            return import_module(module)
    return import_module(modules[-1])


# Newest names first. Imported by name, because no type checker sees two versions at once.
bundle = first_of("raycd.bundle", "raycd.model.bundle")
gallery_db = first_of("raycd.gallery_db", "raycd.catalogue")
records = first_of("raycd.gallery.records", "raycd.catalogue.records")
Query = first_of("raycd.search.query", "raycd.query").Query
Searcher = first_of("raycd.search.searcher", "raycd.search").Searcher
GalleryDatabase = getattr(gallery_db, "GalleryDatabase", None) or gallery_db.Catalogue

MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": [1, 1, 1, 1],
        "width": 8,
        "head_width": 16,
        "patch_size": None,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
IMAGES = 8
PERIOD = 997  # a prime, so that no two rows of a matrix are the same
TEXTS = ("is blue", "has long sleeves and a belt")
FINGERPRINT = "clip" * 16  # of the encoder of the gallery database's features


def picture() -> Image.Image:
    """Draw coarse noise."""
    patch = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(patch).resize((40, 48), Image.Resampling.NEAREST)


def write_bundle(folder: Path, configs: Path) -> None:
    """Write a bundle of random weights, which repeat, so that they compress."""
    torch.manual_seed(0)
    (configs / "raycd-tiny.json").write_text(json.dumps(MODEL), encoding="utf-8")
    clip = encoder.create(EncoderConfig(name="raycd-tiny", pretrained="", configs=str(configs)))
    with torch.inference_mode():
        for weight in clip.clip.parameters():
            first = weight.flatten()[:PERIOD].clone()
            weight.copy_(
                first.repeat(-(-weight.numel() // PERIOD))[: weight.numel()].view_as(weight)
            )
    settings = fusion.HeadConfig(
        "clip_cd", clip.dim, bilinear_dim=4, projection_dim=8, hidden_dim=8
    )
    # Random weights see all pictures as nearly the same; drawn features keep the scores apart.
    features = np.random.default_rng(2).normal(size=(IMAGES, clip.dim)).astype(np.float32)
    gallery = bundle.gallery_table(
        [f"image-{number}" for number in range(IMAGES)],
        [["dress"] if number % 2 else ["shirt", "toptee"] for number in range(IMAGES)],
        [f"https://example.org/{n}.png" if n % 3 else None for n in range(IMAGES)],
        features,
        clip.fingerprint(),
        attributes=[{"pattern": "striped"} if number % 3 == 0 else {} for number in range(IMAGES)],
        run="/data/runs/previous",
    )
    config = Config(preset="demo", encoder=EncoderConfig(name="raycd-tiny", pretrained=""))
    metrics = {"average": {"recall@10": 0.5}}
    head = fusion.create(settings).eval()
    bundle.write(folder, clip, head, settings, gallery, config, metrics, example_texts=TEXTS)


def queries() -> list[Any]:
    """Return a query of each sort: an image, a text, both, and an image of the gallery."""
    image = picture()
    return [
        Query(image, top_k=IMAGES),
        Query(text=TEXTS[0], top_k=IMAGES),
        Query(image, TEXTS[1], top_k=IMAGES),
        Query(image_id="image-5", text=TEXTS[0], top_k=4, exclude_reference=True),
    ]


def results(folder: Path) -> list[list[dict[str, Any]]]:
    """Return what the bundle answers to `queries`, best first."""
    found = Searcher(bundle.load(folder), threads=1).search(queries())
    return [[result._asdict() for result in row] for row in found]


def write_database(file: Path) -> None:
    """Write a gallery database: a bundle's gallery, a change, a new image and a deletion."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(4, 6)).astype(np.float32)
    ids = [f"own-{number}" for number in range(4)]
    paths = [f"https://example.org/{image_id}.jpg" for image_id in ids]
    kinds, looks = [["dress", "größe"]] * 4, [{"colour": "blue"}] * 4
    table = bundle.gallery_table(ids, kinds, paths, features, FINGERPRINT, attributes=looks)
    more = rng.normal(size=(2, 6)).astype(np.float32)
    with GalleryDatabase.open(str(file)) as database:
        database.begin(table, FINGERPRINT, "0" * 64)
        database.write(
            [
                records.Put("own-1", more[0], ("shirt",), {"colour": "red", "neck": "v"}),
                records.Put("new", more[1], ("dress",), {}, "https://example.org/new.jpg"),
                records.Delete("own-2"),
            ],
            FINGERPRINT,
        )


def contents(database: Any) -> dict[str, Any]:
    """Return all that a gallery database holds, as JSON values."""
    held, changes = database.load(FINGERPRINT), database.changes(4, FINGERPRINT)
    return {
        "version": held.version,
        "images": held.table.to_pylist(),
        "features": held.features_GD.tolist(),
        "changes": [[row.image_id, row.version, row.deleted] for row in changes.rows],
    }


def main(target: Path) -> None:
    """Write both fixtures into `target`."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        write_bundle(made / "bundle", Path(scratch))
        write_database(made / "gallery.sqlite")
        with GalleryDatabase.open(str(made / "gallery.sqlite")) as database:
            found = {
                "raycd": raycd.__version__,
                "results": results(made / "bundle"),
                "database": contents(database),
            }
        with tarfile.open(target / "written.tar.xz", "w:xz") as archive:
            for path in sorted(made.rglob("*")):
                if not path.name.endswith((".lock", "-wal", "-shm")):
                    archive.add(path, path.relative_to(made), recursive=False, filter=_nobodys)
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
    (target / "written.json").write_text(text + "\n", encoding="utf-8")


def _nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out whose files they were, and when."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]))
