"""What training hands to serving: one folder that answers queries by itself.

    manifest.json      `Manifest`: settings, metrics and the SHA-256 of every file below
    encoder/           as `Encoder.save` writes it: weights, model configuration, preprocessing
    head/              as `fusion.save` writes it
    gallery.parquet    image_id, categories, path, attributes, feature; its metadata names the encoder of the features
                       and the folder of the run, see `moved`
    index.faiss        the structure of an `Index` over the features, in the same order
    index.safetensors  its numbers

`write` puts the folder in place when it is whole. `load` verifies every hash before anything is
read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from raycd import __version__
from raycd.bundle import sample
from raycd.config import Config
from raycd.data import moved
from raycd.durable import replace_folder, sha256
from raycd.errors import WeightsError
from raycd.gallery.static import SCHEMA
from raycd.index import FILES as INDEX_FILES
from raycd.index import Index
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.finite import check_weights
from raycd.model.fusion import HeadConfig, registry

FORMAT = 2  # also in Manifest
MANIFEST, GALLERY = "manifest.json", moved.GALLERY
FILES = (
    *(f"encoder/{name}" for name in (encoders.WEIGHTS, encoders.CONFIG, encoders.PREPROCESS)),
    *(f"head/{name}" for name in (registry.WEIGHTS, registry.SETTINGS)),
    GALLERY,
    *INDEX_FILES,
)
# Key of the gallery's metadata: fingerprint of the encoder that measured the features
_ENCODER = b"encoder"
_FEATURE = "feature"
_AGAIN = "write the bundle again: start the run that made it once more, or take a whole copy"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EncoderInfo(_Part):
    """Which encoder: open_clip's name, `Encoder.fingerprint`, feature size D."""

    name: str
    fingerprint: str
    dim: int


class IndexInfo(_Part):
    """Which index: its kind, the images in it, feature size D, recall@10 as measured, and what a
    search spends for it.

    `effort` counts lists that are visited (ivf) or candidates that are kept (hnsw); 0 for flat.
    What was asked for stands in the manifest's `config`.
    """

    kind: Literal["flat", "ivf", "hnsw"]
    size: int
    dim: int
    recall: float
    effort: int


class Manifest(_Part):
    """manifest.json. `digest` is the SHA-256 of all the rest, as JSON with sorted keys."""

    format: Literal[2] = 2
    raycd: str
    created: str
    preset: str
    config: dict[str, Any]
    files: dict[str, str]
    encoder: EncoderInfo
    head: dict[str, Any]
    index: IndexInfo
    metrics: dict[str, Any]
    example_texts: list[str] = []
    digest: str = ""

    def own_digest(self) -> str:
        """What `digest` must be."""
        rest = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A bundle in memory, ready to answer. The features of `gallery` lie in the index alone."""

    folder: Path
    encoder: Encoder
    head: nn.Module
    head_config: HeadConfig
    gallery: pa.Table
    index: Index
    config: Config
    manifest: Manifest


def gallery_table(
    image_ids: Sequence[str],
    categories: Sequence[Sequence[str]],
    paths: Sequence[str | None],
    features_GD: NDArray[np.float32],
    fingerprint: str,
    *,
    attributes: Sequence[Mapping[str, str]] | None = None,
    run: str = "",
) -> pa.Table:
    """The searchable images: features (G, D) as the encoder of that fingerprint gives them, not
    normalised.

    `run` is the folder of the run, by which pictures are found when it was moved.
    """
    size, dim = features_GD.shape
    flat = pa.array(np.ascontiguousarray(features_GD, np.float32).reshape(-1))
    known = [image_ids, categories, paths, [list(one.items()) for one in attributes or [{}] * size]]
    columns = [pa.array(values, field.type) for values, field in zip(known, SCHEMA, strict=True)]
    features = pa.FixedSizeListArray.from_arrays(flat, dim)
    assert all(len(column) == size for column in columns)
    table = pa.table([*columns, features], names=[*SCHEMA.names, _FEATURE])
    return table.replace_schema_metadata({_ENCODER: fingerprint.encode(), moved.RUN: run.encode()})


def gallery_features(gallery: pa.Table) -> NDArray[np.float32]:
    """The features (G, D) of a gallery table."""
    column = gallery[_FEATURE].combine_chunks()
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


def read_gallery(folder: Path) -> pa.Table:
    """The gallery table of a bundle as it was written, with its features, which `load` leaves on
    disk.

    Raises WeightsError where it is damaged.
    """
    table = _read_table(folder / GALLERY)
    feature = table.schema.field(_FEATURE).type if _FEATURE in table.column_names else pa.null()
    if not pa.types.is_fixed_size_list(feature) or feature.value_type != pa.float32():
        raise _damaged(
            folder / GALLERY, f"features of type {feature}", "lists of float32, all of one size"
        )
    column = table[_FEATURE]
    if column.null_count or not np.isfinite(gallery_features(table)).all():
        raise _damaged(folder / GALLERY, "a feature that is absent or not finite", "finite numbers")
    return table


def _read_table(path: Path, *, features: bool = True) -> pa.Table:
    """The gallery's rows, as they must be. Raises WeightsError."""
    try:
        columns = [name for name in pq.read_schema(path).names if features or name != _FEATURE]
        table = pq.read_table(path, columns=columns)
        rows = table.select(SCHEMA.names).cast(SCHEMA)
        ids = rows["image_id"]
        texts = [pc.list_flatten(rows["categories"]), ids]
        if any(column.null_count for column in texts) or pc.count_distinct(ids).as_py() != len(ids):
            raise _damaged(
                path,
                "image ids or categories that are null, or ids that repeat",
                "one row an image",
            )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        NotImplementedError,
    ) as error:  # those of Arrow are among them
        raise _damaged(
            path, f"{type(error).__name__}: {error}", f"Parquet of {', '.join(SCHEMA.names)}"
        ) from error
    return table


def _damaged(path: Path, got: str, expected: str) -> WeightsError:
    return WeightsError(
        f"{path} is damaged", got=" ".join(got.split())[:300], expected=expected, do=_AGAIN
    )


def write(
    folder: Path,
    encoder: Encoder,
    head: nn.Module,
    head_config: HeadConfig,
    gallery: pa.Table,
    config: Config,
    metrics: Mapping[str, Any],
    *,
    example_texts: Sequence[str] = (),
) -> Manifest:
    """Write a bundle, index included, and put it in the place of an older one when it is whole.

    `gallery` is a `gallery_table`; `metrics` any JSON values that the service shall state;
    `example_texts` what people may ask for, on which the recall of an approximate index is
    measured, too. Raises WeightsError where the parts do not fit together; then nothing has
    changed.
    """
    fingerprint = encoder.fingerprint()
    features_GD = gallery_features(gallery)
    _check_fit(folder, encoder, fingerprint, head_config, gallery, features_GD.shape)
    check_weights(encoder.clip, "the encoder", do="fine-tune it again")
    check_weights(head, "the fusion head", do="train it again")
    index = build_index(
        encoder, head, features_GD, config, example_texts, threads=config.compute.threads
    )
    with replace_folder(folder) as fresh:
        encoder.save(fresh / "encoder")
        fusion.save(head, head_config, fresh / "head")
        pq.write_table(gallery, fresh / GALLERY)
        hashes = index.save(fresh)
        manifest = Manifest(
            raycd=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            preset=config.preset,
            config=config.model_dump(mode="json"),
            files={name: hashes.get(name) or sha256(fresh / name) for name in FILES},
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


def verify(folder: Path) -> Manifest:
    """The manifest, once every file has its hash. Raises WeightsError: absent, another format,
    changed, incomplete.
    """
    manifest = _manifest(folder)
    _verify_files(folder, manifest, FILES)
    return manifest


def _verify_files(folder: Path, manifest: Manifest, names: Sequence[str]) -> None:
    for name in names:
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise WeightsError(
                f"the bundle {folder} is not whole",
                got=f"{name}: {error.strerror}",
                expected=name,
                do=_AGAIN,
            ) from error
        if found != manifest.files[name]:
            raise WeightsError(
                f"{folder / name} is not the file that the bundle was written with",
                got=f"SHA-256 {found}",
                expected=manifest.files[name],
                do=_AGAIN,
            )


def load(folder: Path, *, threads: int = 0) -> Bundle:
    """Read a bundle that `verify` accepts; `threads` are the index's. Raises WeightsError where its
    parts misfit.
    """
    manifest = _manifest(folder)
    _verify_files(
        folder, manifest, [name for name in FILES if name not in INDEX_FILES]
    )  # the index verifies its own
    try:
        config = Config.model_validate(manifest.config)
    except ValidationError as error:
        raise WeightsError(
            f"the settings of the bundle {folder} cannot be read",
            got=f"written by raycd {manifest.raycd}; {_first(error)}",
            expected=f"settings of raycd {__version__}",
            do=_AGAIN,
        ) from error
    encoder = encoders.load_saved(folder / "encoder")
    head, head_config = fusion.load(folder / "head", dim=encoder.dim)
    gallery = _located(_read_table(folder / GALLERY, features=False), folder)
    index = Index.load(folder, manifest.files, threads=threads)
    _check_finite(folder, index)
    fingerprint = encoder.fingerprint()
    if fingerprint != manifest.encoder.fingerprint:
        raise WeightsError(
            f"the bundle {folder} names another encoder than it holds",
            got=fingerprint,
            expected=manifest.encoder.fingerprint,
            do=_AGAIN,
        )
    _check_fit(folder, encoder, fingerprint, head_config, gallery, (index.size, index.dim))
    return Bundle(folder, encoder, head, head_config, gallery, index, config, manifest)


def _check_finite(folder: Path, index: Index) -> None:
    """The features in the index have finite lengths. (Encoder and head were checked where they were
    read.)
    """
    lengths_G, (mean_D, covariance_DD) = index.lengths(np.arange(index.size)), index.moments()
    if not all(np.isfinite(numbers).all() for numbers in (lengths_G, mean_D, covariance_DD)):
        raise WeightsError(
            f"the index of the bundle {folder} holds features that are not finite",
            got=f"{int((~np.isfinite(lengths_G)).sum())} of {index.size} features",
            expected="finite numbers",
            do=_AGAIN,
        )


def _located(gallery: pa.Table, folder: Path) -> pa.Table:
    """The gallery with the places that its pictures have today."""
    column = gallery.schema.get_field_index("path")
    paths = moved.Move.of(folder).locate_all(gallery["path"].to_pylist())
    return gallery.set_column(column, gallery.schema.field(column), pa.array(paths, pa.string()))


def _manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        sha256(path)  # refuses what is no regular file
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{folder} holds no bundle",
            got=f"{type(error).__name__}: {error}",
            expected=f"{MANIFEST}, encoder/, head/, {GALLERY} and {', '.join(INDEX_FILES)}",
            do="name the bundle/ folder of a run that has finished",
        ) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise WeightsError(
            f"the bundle {folder} is of another format",
            got=f"format {found}",
            expected=f"format {FORMAT}, which raycd {__version__} reads",
            do="run the job again that wrote it (jobs/train.py or jobs/index.py): only the bundle is written anew",
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise WeightsError(
            f"{path} is damaged", got=_first(error), expected="what raycd wrote", do=_AGAIN
        ) from error
    if manifest.digest != manifest.own_digest() or set(manifest.files) != set(FILES):
        raise WeightsError(f"{path} was changed after it was written", do=_AGAIN)
    return manifest


def _check_fit(
    folder: Path,
    encoder: Encoder,
    fingerprint: str,
    head_config: HeadConfig,
    gallery: pa.Table,
    indexed: tuple[int, ...],
) -> None:
    """Encoder, head, gallery and index (its images and their feature size) belong together."""
    size, dim = indexed
    measured_by = (gallery.schema.metadata or {}).get(_ENCODER, b"nobody knows what").decode()
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
            got=f"features of {sizes}, {gallery.num_rows} images in the gallery, {size} in the index",
            expected="one feature size and as many images in the index as in the gallery",
            do="train the head, embed the gallery and build the index with the same encoder",
        )


def build_index(
    encoder: Encoder,
    head: nn.Module,
    features_GD: NDArray[np.float32],
    config: Config,
    example_texts: Sequence[str],
    *,
    threads: int = 0,
    like: Index | None = None,
) -> Index:
    """The index of features (G, D); its recall is measured on queries made of the example texts, if
    there are any.

    `threads` and `like` are those of `Index.build`.
    """
    queries = None
    if example_texts and config.index.kind_for(len(features_GD)) != "flat":
        queries = sample.queries(encoder, head, features_GD, example_texts, config)
    return Index.build(
        features_GD, config.index, queries=queries, threads=threads, seed=config.seed, like=like
    )


def _index_info(index: Index) -> IndexInfo:
    return IndexInfo(
        kind=index.kind, size=index.size, dim=index.dim, recall=index.recall, effort=index.effort
    )


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
