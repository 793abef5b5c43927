"""The two files of an index, read only after their SHA-256 is verified.

A FAISS file that was tampered with can corrupt memory.

    index.faiss         the structure with the normalised features, mapped into memory, which
                        processes share
    index.safetensors   lengths of the features, moments; kind, search effort and recall in its
                        metadata
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import faiss
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from raycd.durable import sha256
from raycd.errors import WeightsError, brief

STRUCTURE, NUMBERS = "index.faiss", "index.safetensors"
FILES = (STRUCTURE, NUMBERS)

# Key of the metadata: JSON. One key alone, because safetensors writes several in any order
_FACTS = "index"

Arrays = dict[str, NDArray[np.float32]]


class IndexFacts(NamedTuple):
    """What the arrays do not say: kind, search effort, recall."""

    kind: str
    effort: int
    recall: float


def save(folder: Path, index: Any, arrays: Arrays, facts: IndexFacts) -> dict[str, str]:
    """Write both files and return the SHA-256 of each, by name."""
    faiss.write_index(index, str(folder / STRUCTURE))
    save_file(arrays, folder / NUMBERS, metadata={_FACTS: json.dumps(facts._asdict())})
    return {name: sha256(folder / name) for name in FILES}


def load(folder: Path, expected: Mapping[str, str]) -> tuple[Any, Arrays, IndexFacts]:
    """Return FAISS's index, the arrays and the facts.

    Raises WeightsError where a file is absent or of another hash.
    """
    for name in FILES:
        _verify(folder / name, expected[name])
    with reading(folder / NUMBERS), safe_open(folder / NUMBERS, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = IndexFacts(**json.loads(file.metadata()[_FACTS]))
    with reading(folder / STRUCTURE):
        index = faiss.read_index(str(folder / STRUCTURE), faiss.IO_FLAG_MMAP_IFC)
    return index, arrays, facts


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever the libraries raise while they read a file into a WeightsError."""
    try:
        yield
    except Exception as error:
        raise WeightsError(
            f"the index {path} cannot be read",
            got=brief(error),
            expected="what raycd wrote",
            do="build the index again",
        ) from error


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
