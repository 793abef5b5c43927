"""A bundle: what training hands to serving, one folder that answers queries by itself.

    manifest.json      `Manifest`: settings, metrics and the SHA-256 of every file below
    encoder/           as `Encoder.save` writes it: weights, model configuration, preprocessing,
                       and a Hugging Face tokenizer's files
    head/              as `fusion.save` writes it
    gallery.parquet    image_id, categories, path, attributes, feature; its metadata holds the
                       fingerprint of the features' encoder and the folder of the run, see `moved`
    index.faiss        the structure of an `Index` over the features, in the same order
    index.safetensors  its numbers
    maps/              only where the head needs maps: for each need the `map_cache` of the gallery

`write` replaces the folder at once when it is whole. `load` verifies every hash before anything is
read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from raycd import __version__
from raycd.bundle import sample
from raycd.bundle.manifest import (
    AGAIN,
    FILES,
    FORMAT,
    GALLERY,
    MANIFEST,
    MAPS,
    EncoderInfo,
    IndexEntry,
    Manifest,
    first_error,
    further_files,
    read_manifest,
    verify,
    verify_files,
)
from raycd.bundle.shared import SharedEncoders
from raycd.bundle.table import (
    TableFeatures,
    categories,
    gallery_features,
    gallery_parts,
    gallery_table,
    read_gallery,
    read_table,
)
from raycd.config import Config, IndexConfig
from raycd.data import moved
from raycd.durable import replace_folder, sha256
from raycd.errors import DataError, WeightsError
from raycd.features import map_cache
from raycd.features.map_cache import NOTHING, Extras
from raycd.gallery.static import ENCODER
from raycd.index import FILES as INDEX_FILES
from raycd.index import Index
from raycd.index.blocks import FeatureRows
from raycd.index.choice import check, kind_for
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.fusion import Head, HeadConfig
from raycd.model.weights import check_weights
from raycd.redact import json_without_passwords

__all__ = [
    "FILES",
    "FORMAT",
    "GALLERY",
    "MANIFEST",
    "Bundle",
    "EncoderInfo",
    "IndexEntry",
    "Manifest",
    "SharedEncoders",
    "build_index",
    "categories",
    "gallery_features",
    "gallery_parts",
    "gallery_table",
    "load",
    "load_encoder",
    "read_gallery",
    "read_manifest",
    "verify",
    "write",
]


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. The features of `gallery` are in the index alone."""

    folder: Path
    encoder: Encoder
    head: Head
    head_config: HeadConfig
    gallery: pa.Table
    index: Index
    config: Config
    manifest: Manifest
    extras: Extras = NOTHING
    """Of the gallery's images, what the head needs beside features."""


def write(
    folder: Path,
    encoder: Encoder,
    head: Head,
    head_config: HeadConfig,
    gallery: pa.Table,
    config: Config,
    metrics: Mapping[str, Any],
    *,
    example_texts: Sequence[str] = (),
    extras: Extras = NOTHING,
    threads: int = 0,
) -> Manifest:
    """Write a bundle, index included, and replace an older one when it is whole.

    `gallery` is a `gallery_table`; `metrics` are JSON values that the service reports;
    `example_texts` are suggestions for users, on which the recall of an approximate index is
    measured too; `extras` has what the head needs of the gallery's images, without which a query
    can name none of them; `threads` build the index, 0: as many as `compute.threads` says.

    Raises WeightsError where the parts do not fit together, ConfigError where the index does not
    fit into `index.memory_mib`; then nothing has changed.
    """
    fingerprint = encoder.fingerprint()
    features_GD = TableFeatures(gallery)
    _check_fit(folder, encoder, fingerprint, head_config, gallery, features_GD.shape)
    check(config.index, *features_GD.shape)
    check_weights(encoder.clip, "the encoder", do="fine-tune it again")
    check_weights(head, "the fusion head", do="train it again")
    threads = threads or config.compute.threads
    index = build_index(encoder, head, features_GD, config, example_texts, threads=threads)
    with replace_folder(folder) as fresh:
        encoder.save(fresh / "encoder")
        fusion.save(head, head_config, fresh / "head")
        pq.write_table(gallery, fresh / GALLERY)
        hashes = index.save(fresh)
        extras.write(fresh / MAPS, gallery["image_id"].to_pylist())
        names = [*FILES, *further_files(fresh)]
        manifest = Manifest(
            raycd=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            preset=config.preset,
            config=json_without_passwords(config.model_dump(mode="json")),
            files={name: hashes.get(name) or sha256(fresh / name) for name in names},
            encoder=EncoderInfo(name=config.encoder.name, fingerprint=fingerprint, dim=encoder.dim),
            head=asdict(head_config),
            index=_index_info(index),
            metrics=dict(metrics),
            example_texts=list(example_texts),
        )
        manifest = manifest.model_copy(update={"digest": manifest.own_digest()})
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
        (fresh / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def load(
    folder: Path, *, threads: int = 0, gallery: bool = True, encoders: SharedEncoders | None = None
) -> Bundle:
    """Load a bundle that `verify` accepts; `threads` are those of the index.

    Without its `gallery`, table and index are empty, and what the files have is not read. One of
    the `encoders` is taken, unchanged, where it was made of the same files.

    Raises WeightsError where its parts do not fit together.
    """
    manifest = read_manifest(folder)
    # The index verifies its own files
    later = INDEX_FILES if gallery else (*INDEX_FILES, GALLERY)
    verify_files(folder, manifest, [name for name in manifest.files if name not in later])
    try:
        config = Config.model_validate(manifest.config)
    except ValidationError as error:
        raise WeightsError(
            f"the settings of the bundle {folder} cannot be read",
            got=f"written by raycd {manifest.raycd}; {first_error(error)}",
            expected=f"settings of raycd {__version__}",
            do=AGAIN,
        ) from error
    encoder = (encoders or SharedEncoders()).load(
        manifest, lambda: _whole_encoder(folder, manifest)
    )
    head, head_config = fusion.load(folder / "head", dim=encoder.dim)
    fingerprint = manifest.encoder.fingerprint
    if gallery:
        table = _located(read_table(folder / GALLERY), folder)
        index = Index.load(folder, manifest.files, threads=threads)
        _check_finite(folder, index)
    else:
        none_GD = np.empty((0, encoder.dim), np.float32)
        table = gallery_table([], [], [], none_GD, fingerprint)
        index = Index.build(none_GD, IndexConfig(kind="flat"))
    _check_fit(folder, encoder, fingerprint, head_config, table, (index.size, index.dim))
    extras = _extras(folder, manifest)
    return Bundle(folder, encoder, head, head_config, table, index, config, manifest, extras)


def _extras(folder: Path, manifest: Manifest) -> Extras:
    """Open the maps of a bundle, verified before. Raises WeightsError where they cannot be read."""
    needs = sorted({name.split("/")[1] for name in manifest.files if name.startswith(f"{MAPS}/")})
    try:
        return Extras({need: map_cache.read(folder / MAPS / need) for need in needs})
    except DataError as error:
        raise WeightsError(
            f"the maps of the bundle {folder} are damaged",
            got=" ".join(str(error).split()),
            do=AGAIN,
        ) from error


def _whole_encoder(folder: Path, manifest: Manifest) -> Encoder:
    """Load the encoder that the manifest names. Raises WeightsError where it is another one."""
    encoder = load_encoder(folder, manifest)
    if (fingerprint := encoder.fingerprint()) != manifest.encoder.fingerprint:
        raise WeightsError(
            f"the bundle {folder} names another encoder than it holds",
            got=fingerprint,
            expected=manifest.encoder.fingerprint,
            do=AGAIN,
        )
    return encoder


def load_encoder(folder: Path, manifest: Manifest) -> Encoder:
    """Load a verified bundle's encoder, of no other files than were verified."""
    names = [name.removeprefix("encoder/") for name in manifest.files]
    return encoders.load_saved(folder / "encoder", names=names)


def _check_finite(folder: Path, index: Index) -> None:
    """Raise WeightsError unless the features in the index have finite lengths and moments.

    Encoder and head were checked where they were read.
    """
    lengths_G, (mean_D, covariance_DD) = index.lengths(np.arange(index.size)), index.moments()
    if not all(np.isfinite(numbers).all() for numbers in (lengths_G, mean_D, covariance_DD)):
        raise WeightsError(
            f"the index of the bundle {folder} holds features that are not finite",
            got=f"{int((~np.isfinite(lengths_G)).sum())} of {index.size} features",
            expected="finite numbers",
            do=AGAIN,
        )


def _located(gallery: pa.Table, folder: Path) -> pa.Table:
    """Return the gallery with the paths that its pictures have today."""
    column = gallery.schema.get_field_index("path")
    paths = moved.Move.of(folder).locate_all(gallery["path"].to_pylist())
    return gallery.set_column(column, gallery.schema.field(column), pa.array(paths, pa.string()))


def _check_fit(
    folder: Path,
    encoder: Encoder,
    fingerprint: str,
    head_config: HeadConfig,
    gallery: pa.Table,
    indexed: tuple[int, ...],
) -> None:
    """Raise WeightsError unless encoder, head, gallery and index belong together.

    `indexed` is the number of images in the index and their feature size.
    """
    size, dim = indexed
    measured_by = (gallery.schema.metadata or {}).get(ENCODER, b"an unknown encoder").decode()
    if measured_by != fingerprint:
        raise WeightsError(
            f"the gallery's features of {folder} were measured by another encoder",
            got=measured_by,
            expected=fingerprint,
            do="embed the gallery again with the encoder of the bundle",
        )
    sizes = {"encoder": encoder.dim, "head": head_config.dim, "index": dim}
    if len(set(sizes.values())) > 1 or size != gallery.num_rows:
        raise WeightsError(
            f"the parts of the bundle {folder} are of different size",
            got=f"features of {sizes}, {gallery.num_rows} images in the gallery, "
            f"{size} in the index",
            expected="one feature size and as many images in the index as in the gallery",
            do="train the head, embed the gallery and build the index with the same encoder",
        )


def build_index(
    encoder: Encoder,
    head: Head,
    features_GD: FeatureRows,
    config: Config,
    example_texts: Sequence[str],
    *,
    threads: int = 0,
    like: Index | None = None,
) -> Index:
    """Build the index of features (G, D).

    Its recall is measured on queries made of the example texts, if there are any. `threads` and
    `like` are those of `Index.build`.
    """
    queries = None
    size, dim = features_GD.shape
    if example_texts and kind_for(config.index, size, dim) not in ("flat", "half"):
        queries = sample.queries(encoder, head, features_GD, example_texts, config)
    return Index.build(
        features_GD, config.index, queries=queries, threads=threads, seed=config.seed, like=like
    )


def _index_info(index: Index) -> IndexEntry:
    return IndexEntry(
        kind=index.kind, size=index.size, dim=index.dim, recall=index.recall, effort=index.effort
    )
