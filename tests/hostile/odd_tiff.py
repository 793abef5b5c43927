"""The TIFFs of the corpus: every kind of levels in both byte orders."""

from __future__ import annotations

import struct
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.hostile.odd import (
    BLACK,
    DARK,
    LEFT,
    LIGHT,
    RIGHT,
    SIDE,
    WHITE,
    Odd,
    broken,
    halves,
    noise,
    ok,
    saved,
)

_SHORT, _LONG = 3, 4


def tiff(
    levels_HWC: NDArray[Any],
    *,
    order: Literal["<", ">"] = "<",
    photometric: int = 1,
    bits: int | None = None,
    sample: int | None = None,
    extra: dict[int, tuple[int, list[int]]] | None = None,
) -> bytes:
    """Return an uncompressed TIFF of one strip, of a type of numpy or of `bits` packed levels."""
    levels_HWC = levels_HWC.astype(levels_HWC.dtype.newbyteorder(order))
    channels = levels_HWC.shape[2] if levels_HWC.ndim == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3}[levels_HWC.dtype.kind]
    body = levels_HWC.tobytes()
    entries: dict[int, tuple[int, list[int]]] = {
        256: (_SHORT, [SIDE]),
        257: (_SHORT, [SIDE]),
        258: (_SHORT, [bits or levels_HWC.dtype.itemsize * 8] * channels),
        259: (_SHORT, [1]),
        262: (_SHORT, [photometric]),
        273: (_LONG, [8]),
        277: (_SHORT, [channels]),
        278: (_SHORT, [SIDE]),
        279: (_LONG, [len(body)]),
        339: (_SHORT, [sample or kind] * channels),
    } | (extra or {})
    entries = {tag: entry for tag, entry in entries.items() if entry[1]}
    far = 8 + len(body)
    ifd, values = struct.pack(f"{order}H", len(entries)), b""
    for tag, (type_, numbers) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(numbers)}{'H' if type_ == _SHORT else 'I'}", *numbers)
        if len(packed) > 4:
            packed, values = struct.pack(f"{order}I", far + len(values)), values + packed
        ifd += struct.pack(f"{order}HHI", tag, type_, len(numbers)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", far + len(values))
    return head + body + values + ifd + bytes(4)


def levels(left: float, right: float, dtype: str) -> NDArray[Any]:
    array = np.full((SIDE, SIDE), right, dtype)
    array[:, :8] = left
    return array


def tiffs() -> list[Odd]:
    """Return all of them."""
    grey: dict[str, Any] = {"left": DARK, "right": LIGHT}
    rgb = np.asarray(halves())
    orders: list[tuple[str, Literal["<", ">"]]] = [("ii", "<"), ("mm", ">")]
    both = [
        odd
        for name, order in orders
        for odd in (
            ok(f"tiff-8-{name}", tiff(levels(51, 204, "u1"), order=order), **grey),
            ok(
                f"tiff-8-white-is-zero-{name}",
                tiff(levels(204, 51, "u1"), order=order, photometric=0),
                **grey,
            ),
            ok(f"tiff-16-{name}", tiff(levels(13107, 52428, "u2"), order=order), **grey),
            ok(
                f"tiff-16-white-is-zero-{name}",
                tiff(levels(52428, 13107, "u2"), order=order, photometric=0),
                **grey,
            ),
            ok(f"tiff-16-dark-{name}", tiff(levels(0, 257, "u2"), order=order), BLACK, (1, 1, 1)),
            ok(
                f"tiff-u32-{name}",
                tiff(levels(2**32 // 5, 2**32 // 5 * 4, "u4"), order=order),
                **grey,
            ),
            ok(
                f"tiff-u32-of-16-bits-{name}", tiff(levels(13107, 52428, "u4"), order=order), **grey
            ),
            ok(f"tiff-i32-of-8-bits-{name}", tiff(levels(51, 204, "i4"), order=order), **grey),
            ok(f"tiff-float-to-1-{name}", tiff(levels(0.2, 0.8, "f4"), order=order), **grey),
            ok(f"tiff-float-to-255-{name}", tiff(levels(51, 204, "f4"), order=order), **grey),
            ok(
                f"tiff-float-to-65535-{name}", tiff(levels(13107, 52428, "f4"), order=order), **grey
            ),
            ok(
                f"tiff-float-beyond-{name}",
                tiff(levels(-0.03, 1.05, "f4"), order=order),
                BLACK,
                WHITE,
            ),
            ok(f"tiff-rgb-8-{name}", tiff(rgb, order=order, photometric=2)),
            ok(f"tiff-rgb-16-{name}", tiff(rgb.astype("u2") * 257, order=order, photometric=2)),
        )
    ]
    negative = tiff(levels(0.8, 0.2, "f4"), photometric=0)
    packed_12 = np.frombuffer((b"\x33\x33\x33" * 4 + b"\xcc\xcc\xcc" * 4) * SIDE, "u1").reshape(
        SIDE, 24
    )
    premultiplied = np.stack([levels(0, 51, "u1"), levels(0, 255, "u1")], -1)
    squeezed = [
        ok(f"tiff-{name}", saved(halves(), "TIFF", compression=name), near=near)
        for name, near in (
            ("packbits", 0),
            ("tiff_lzw", 0),
            ("tiff_adobe_deflate", 0),
            ("jpeg", 60),
        )
    ]
    cut = saved(noise(), "TIFF")
    huge = {256: (_LONG, [60_000]), 257: (_LONG, [60_000])}
    strips = tiff(
        levels(51, 204, "u1"), extra={273: (_LONG, [8] * 4000), 278: (_SHORT, [SIDE - 1])}
    )
    return [
        *both,
        *squeezed,
        ok("tiff-12", tiff(packed_12, bits=12), **grey),
        ok("tiff-float-white-is-zero", negative, **grey),
        ok("tiff-float-all-black", tiff(levels(0, 0, "f4")), BLACK, BLACK),
        ok(
            "tiff-grey-alpha-multiplied",
            tiff(premultiplied, extra={338: (_SHORT, [1])}),
            WHITE,
            DARK,
        ),
        ok("tiff-cmyk", saved(halves().convert("CMYK"), "TIFF")),
        ok("tiff-1-bit", saved(halves(BLACK, WHITE).convert("1"), "TIFF"), BLACK, WHITE),
        ok(
            "tiff-many-pages",
            saved(halves(), "TIFF", save_all=True, append_images=[halves(RIGHT, LEFT)]),
        ),
        ok(
            "tiff-tag-beyond-the-file",
            tiff(rgb, photometric=2, extra={65000: (_LONG, [1] * 3)})[:-40] + bytes(40),
        ),
        broken("tiff-float-of-no-scale", tiff(levels(1.5, 7, "f4")), "not_an_image"),
        broken("tiff-float-negative", tiff(levels(-1, 1, "f4")), "not_an_image"),
        broken("tiff-float-nan", tiff(levels(float("nan"), 1, "f4")), "not_an_image"),
        broken("tiff-float-infinite", tiff(levels(float("inf"), 1, "f4")), "not_an_image"),
        broken("tiff-i32-of-10-bits", tiff(levels(200, 1000, "i4")), "not_an_image"),
        broken("tiff-i32-negative", tiff(levels(-5000, 5000, "i4")), "not_an_image"),
        broken("tiff-float-of-64-bits", tiff(levels(0.2, 0.8, "f8"))),
        broken("tiff-float-rgb", tiff(rgb.astype("f4") / 255, photometric=2)),
        broken("tiff-covered-2000-times", strips),
        broken("tiff-cut", cut[:1500]),
        broken("tiff-header-alone", cut[:8]),
        broken("tiff-of-60000x60000", tiff(rgb, photometric=2, extra=huge), "too_large"),
    ]
