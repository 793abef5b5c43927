"""The two files of an index, which are read only after their SHA-256 is verified: a FAISS file that was tampered with
can corrupt memory.

    index.faiss         the structure with the normalised features, mapped into memory: processes share it
    index.safetensors   lengths of the features, moments; kind, effort and recall in its metadata
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from raycd.errors import WeightsError

STRUCTURE, NUMBERS = "index.faiss", "index.safetensors"
FILES = (STRUCTURE, NUMBERS)

Arrays = dict[str, NDArray[np.float32]]


def save(folder: Path, index: Any, arrays: Arrays, facts: dict[str, str]) -> dict[str, str]:
    """Write both files; returns the SHA-256 of each, by name."""
    faiss.write_index(index, str(folder / STRUCTURE))
    save_file(arrays, folder / NUMBERS, metadata=facts)
    return {name: sha256(folder / name) for name in FILES}


def load(folder: Path, expected: Mapping[str, str]) -> tuple[Any, Arrays, dict[str, str]]:
    """FAISS's index, the arrays and the facts. Raises WeightsError where a file is absent or of another hash."""
    for name in FILES:
        _verify(folder / name, expected[name])
    with safe_open(folder / NUMBERS, framework="numpy") as file:
        arrays, facts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    return faiss.read_index(str(folder / STRUCTURE), faiss.IO_FLAG_MMAP_IFC), arrays, facts


def sha256(path: Path) -> str:
    """Of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, expected: str) -> None:
    try:
        found = sha256(path)
    except OSError as error:
        raise WeightsError(
            f"the index {path} cannot be read",
            got=f"{type(error).__name__}: {error.strerror}",
            do="build the index again",
        ) from error
    if found != expected:
        raise WeightsError(
            f"the index {path} is not the file that was saved",
            got=f"SHA-256 {found}",
            expected=expected,
            do="build the index again",
        )
