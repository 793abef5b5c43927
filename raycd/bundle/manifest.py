"""The manifest of a bundle, and the verification of its files.

Nothing of a bundle is parsed before its SHA-256 is that of the manifest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from raycd import __version__
from raycd.config.fields import IndexKind
from raycd.data import moved
from raycd.durable import sha256
from raycd.errors import WeightsError
from raycd.index import FILES as INDEX_FILES
from raycd.model import encoder as encoders
from raycd.model.fusion import registry

FORMAT = 2  # also in Manifest
MANIFEST, GALLERY = "manifest.json", moved.GALLERY
FILES = (
    *(f"encoder/{name}" for name in (encoders.WEIGHTS, encoders.CONFIG, encoders.PREPROCESS)),
    *(f"head/{name}" for name in (registry.WEIGHTS, registry.SETTINGS)),
    GALLERY,
    *INDEX_FILES,
)
MAPS = "maps"
_MAP_FILE = re.compile(rf"{MAPS}/(map|middle)/(shape\.json|keys\.parquet|\1-\d{{5}}\.npy)")
# A tokenizer's or a model's own: whatever their names, but none hidden and none outside
_OF_ENCODER = re.compile(r"encoder/((?!\.)[^/\\\0]+/)*(?!\.)[^/\\\0]+")
AGAIN = "write the bundle again: start the run that made it once more, or take a whole copy"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EncoderInfo(_Part):
    """The encoder: open_clip's name, `Encoder.fingerprint`, feature size D."""

    name: str
    fingerprint: str
    dim: int


class IndexEntry(_Part):
    """The index: its kind, images, feature size D, measured recall@10, and search effort.

    `effort` is nprobe, the lists that a search visits (ivf, sq8, rabitq), or efSearch, the
    candidates that it keeps (hnsw); 0 for flat and half. The settings asked for are
    in the manifest's `config`.
    """

    kind: IndexKind
    size: int
    dim: int
    recall: float
    effort: int


class Manifest(_Part):
    """manifest.json. `digest` is the SHA-256 of everything else, as JSON with sorted keys.

    `files` are FILES, and those of the encoder's tokenizer where it has some.
    """

    format: Literal[2] = 2
    raycd: str
    created: str
    preset: str
    config: dict[str, Any]
    files: dict[str, str]
    encoder: EncoderInfo
    head: dict[str, Any]
    index: IndexEntry
    metrics: dict[str, Any]
    example_texts: list[str] = []
    digest: str = ""

    def own_digest(self) -> str:
        """Return the correct value of `digest`."""
        rest = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def verify(folder: Path) -> Manifest:
    """Return the manifest after every file has been compared with its hash.

    Raises WeightsError where the bundle is absent, of another format, changed or incomplete.
    """
    manifest = read_manifest(folder)
    verify_files(folder, manifest, list(manifest.files))
    return manifest


def further_files(folder: Path) -> list[str]:
    """Return the names of a bundle's files beyond FILES: more of the encoder's, and maps."""
    files = [path for part in ("encoder", MAPS) for path in (folder / part).rglob("*")]
    names = [path.relative_to(folder).as_posix() for path in files if path.is_file()]
    return sorted(set(names) - set(FILES))


def verify_files(folder: Path, manifest: Manifest, names: Sequence[str]) -> None:
    """Raise WeightsError unless the named files have the hashes of the manifest."""
    for name in names:
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise WeightsError(
                f"the bundle {folder} is not whole",
                got=f"{name}: {error.strerror}",
                expected=name,
                do=AGAIN,
            ) from error
        if found != manifest.files[name]:
            raise WeightsError(
                f"{folder / name} is not the file that the bundle was written with",
                got=f"SHA-256 {found}",
                expected=manifest.files[name],
                do=AGAIN,
            )


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest, its own digest verified. Raises WeightsError."""
    path = folder / MANIFEST
    try:
        sha256(path)  # refuses anything but a regular file
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
            do="run the job again that wrote it (jobs/train.py or jobs/index.py): "
            "only the bundle is written again",
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise WeightsError(
            f"{path} is damaged", got=first_error(error), expected="what raycd wrote", do=AGAIN
        ) from error
    names = manifest.files.keys()
    known = names >= set(FILES) and all(
        _MAP_FILE.fullmatch(name) or _OF_ENCODER.fullmatch(name) for name in names - set(FILES)
    )
    if manifest.digest != manifest.own_digest() or not known:
        raise WeightsError(f"{path} was changed after it was written", do=AGAIN)
    return manifest


def first_error(error: ValidationError) -> str:
    """Return the first error of a validation, on one line."""
    detail = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
