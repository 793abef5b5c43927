"""The kind of an index: the best that so many images need, and whose memory is there.

As autofaiss chooses: https://github.com/criteo/autofaiss. What counts is what every search reads or
the process owns: codes, numbers, lists, centres, lengths. The rows of float16 that half, sq8 and
rabitq compare candidates with are in a mapped file, whose pages the system drops where memory is
short.
"""

from __future__ import annotations

from typing import Any, get_args

import faiss

from raycd.config import IndexConfig
from raycd.config.fields import IndexKind
from raycd.errors import ConfigError
from raycd.index import approximate

_faiss: Any = faiss  # its types lack what is used here
KINDS: tuple[IndexKind, ...] = get_args(IndexKind)
MAPPED: tuple[IndexKind, ...] = ("half", "sq8", "rabitq")  # those that compare by a file's rows
# From the best; each needs less memory than the one before
EXACT: tuple[IndexKind, ...] = ("flat", "half")
ROOM = 1.1
_LISTS: tuple[IndexKind, ...] = ("ivf", "sq8", "rabitq")


def kind_for(
    settings: IndexConfig, images: int, dim: int, now: IndexKind | None = None
) -> IndexKind:
    """Return the kind that a gallery of so many images gets; the smallest where none fits.

    Args:
        now: The kind that it has. A better one must fit with ROOM times the images: a gallery that
            changes around the bound would be of another kind each time, and its centres trained.
    """
    if settings.kind != "auto":
        # Lists and centres are not made of nothing
        return settings.kind if images else "half" if settings.kind in MAPPED else "flat"
    kinds = EXACT if images <= settings.flat_up_to else _LISTS
    better = kinds[: kinds.index(now)] if now in kinds else ()
    sizes = {kind: int(images * (ROOM if kind in better else 1)) for kind in kinds}
    return next((kind for kind in kinds if _fits(kind, settings, sizes[kind], dim)), kinds[-1])


def check(settings: IndexConfig, images: int, dim: int) -> None:
    """Raise ConfigError where the index would need more memory than `index.memory_mib`."""
    kind = kind_for(settings, images, dim)
    if not _fits(kind, settings, images, dim):
        raise ConfigError(
            f"the gallery's index does not fit into index.memory_mib as {kind}",
            got=f"{settings.memory_mib} MiB, {images:,} images of {dim} numbers",
            expected=f"at least {-int(-resident_mib(kind, settings, images, dim) // 1)} MiB",
            do="raise index.memory_mib"
            + ("" if kind in ("half", "rabitq") else ", or set index.kind to auto"),
        )


def resident_mib(kind: IndexKind, settings: IndexConfig, images: int, dim: int) -> float:
    """Return the memory of an index, in MiB."""
    each = {
        "flat": 4 * dim,
        "half": 0,
        # M links on each level and twice that on the ground; a 1/M of the images is on the next
        "hnsw": 4 * dim + 4 * 2 * settings.hnsw_m + 12,
        # Of lists each image has number, list and code
        "ivf": 8 + 4 + dim + 4 * dim,
        "sq8": 8 + 4 + dim,
        "rabitq": 8 + 4 + int(_faiss.RaBitQuantizer(dim, faiss.METRIC_INNER_PRODUCT).code_size),
    }[kind]
    lists = approximate.lists(images, settings.ivf_lists) if kind in _LISTS else 0
    length = 4
    return (images * (each + length) + lists * 4 * dim) / 2**20


def _fits(kind: IndexKind, settings: IndexConfig, images: int, dim: int) -> bool:
    needed = resident_mib(kind, settings, images, dim)
    return not settings.memory_mib or needed <= settings.memory_mib
