"""The PNGs of the corpus: every kind of colour, and every chunk that can be large or damaged."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

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
    noise_at,
    ok,
    saved,
)

PNG = b"\x89PNG\r\n\x1a\n"


def pngs() -> list[Odd]:
    """Return all of them."""
    return [*_pngs(), *_damaged_pngs()]


def chunk(kind: bytes, body: bytes, *, crc_off_by: int = 0) -> bytes:
    crc = (zlib.crc32(kind + body) + crc_off_by) % 2**32
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def _png(
    rows: Sequence[bytes],
    depth: int,
    colour: int,
    *extra: bytes,
    width: int = SIDE,
    last: bytes = b"",
) -> bytes:
    """Return a PNG of packed rows, with `extra` before the pixels and `last` after them."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", pixels), last, chunk(b"IEND", b"")]
    return PNG + b"".join(parts)


def _grey_row(depth: int) -> bytes:
    """Return a row: left a fifth of white, right four fifths, or DARK and LIGHT in few bits."""
    top = 2**depth - 1
    if depth == 16:
        return struct.pack(">16H", *[top // 5] * 8, *[top * 4 // 5] * 8)
    bits = "".join(
        f"{level:0{depth}b}" for level in [round(top / 5)] * 8 + [round(top * 4 / 5)] * 8
    )
    return int(bits, 2).to_bytes(len(bits) // 8)


def _rgb_rows() -> list[bytes]:
    return [bytes(LEFT) * 8 + bytes(RIGHT) * 8] * SIDE


def _with(*extra: bytes, last: bytes = b"") -> bytes:
    """Return a good PNG with these chunks in it."""
    return _png(_rgb_rows(), 8, 2, *extra, last=last)


def _pngs() -> list[Odd]:
    half = {1: (BLACK, WHITE), 2: ((85, 85, 85), (170, 170, 170))}
    greys = [
        ok(
            f"png-grey-{depth}",
            _png([_grey_row(depth)] * SIDE, depth, 0),
            *half.get(depth, (DARK, LIGHT)),
        )
        for depth in (1, 2, 4, 8, 16)
    ]
    palette = chunk(b"PLTE", bytes(LEFT + RIGHT))
    palettes = [
        ok(f"png-palette-{depth}", _png([_indices(depth)] * SIDE, depth, 3, palette))
        for depth in (1, 2, 4, 8)
    ]
    wide_row = b"".join(
        struct.pack(">3H", *(level * 257 for level in colour)) * 8 for colour in (LEFT, RIGHT)
    )
    alpha = bytes((*LEFT, 0)) * 8 + bytes((*RIGHT, 255)) * 8
    wide_alpha = b"".join(
        struct.pack(">4H", *(level * 257 for level in alpha[at : at + 4])) for at in range(0, 64, 4)
    )
    grey_alpha = bytes((0, 0)) * 8 + bytes((51, 255)) * 8
    wide_grey = struct.pack(">32H", *[0, 0] * 8, *[51 * 257, 65535] * 8)
    transparent = struct.pack(">H", 65535 // 5)
    frames = [halves(), halves(RIGHT, LEFT)]
    return [
        *greys,
        *palettes,
        ok("png-rgb-8", _with()),
        ok("png-interlaced", _interlaced()),
        ok("png-rgb-16", _png([wide_row] * SIDE, 16, 2)),
        ok("png-rgba-8", _png([alpha] * SIDE, 8, 6), WHITE),
        ok("png-rgba-16", _png([wide_alpha] * SIDE, 16, 6), WHITE),
        ok("png-grey-alpha-8", _png([grey_alpha] * SIDE, 8, 4), WHITE, DARK),
        ok("png-grey-alpha-16", _png([wide_grey] * SIDE, 16, 4), WHITE, DARK),
        ok(
            "png-grey-8-transparent",
            _png([_grey_row(8)] * SIDE, 8, 0, chunk(b"tRNS", b"\0\x33")),
            WHITE,
            LIGHT,
        ),
        ok(
            "png-grey-16-transparent",
            _png([_grey_row(16)] * SIDE, 16, 0, chunk(b"tRNS", transparent)),
            WHITE,
            LIGHT,
        ),
        ok("png-rgb-transparent", _with(chunk(b"tRNS", struct.pack(">3H", *LEFT))), WHITE),
        ok(
            "png-palette-transparent",
            _png([_indices(8)] * SIDE, 8, 3, palette, chunk(b"tRNS", b"\0")),
            WHITE,
        ),
        ok(
            "png-palette-alphas",
            _png([_indices(8)] * SIDE, 8, 3, palette, chunk(b"tRNS", b"\0\xff")),
            WHITE,
        ),
        ok("png-animated", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])),
        Odd(
            "png-noise",
            saved(noise(), "PNG"),
            at={(9, 4): noise_at(9, 4)},
            size=(64, 64),
            near=0,
        ),
        Odd(
            "png-8x4100",
            saved(halves(size=(8, 4100)), "PNG"),
            at={(1, 9): LEFT, (6, 4000): RIGHT},
            size=(8, 4100),
        ),
        Odd(
            "png-10x6000", saved(halves(size=(10, 6000)), "PNG"), at={(1, 9): LEFT}, size=(10, 6000)
        ),
        Odd(
            "png-9000x12", saved(halves(size=(9000, 12)), "PNG"), at={(1, 9): LEFT}, size=(9000, 12)
        ),
        ok("png-in-a-file-called-jpg.jpg", _with()),
        broken("png-7x20", saved(halves(size=(7, 20)), "PNG"), "too_small"),
        broken("png-1x1", saved(Image.new("RGB", (1, 1)), "PNG"), "too_small"),
    ]


def _interlaced() -> bytes:
    pixels = np.asarray(halves())
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = [row.tobytes() for y, x, down, across in passes for row in pixels[y::down, x::across]]
    whole = _png(rows, 8, 2)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 1)
    return whole[:8] + chunk(b"IHDR", header) + whole[33:]


def _indices(depth: int) -> bytes:
    bits = "".join(f"{index:0{depth}b}" for index in [0] * 8 + [1] * 8)
    return int(bits, 2).to_bytes(len(bits) // 8)


def _damaged_pngs() -> list[Odd]:
    """Return PNGs damaged in pixels, header or palette, which counts, or elsewhere."""
    large = zlib.compress(bytes(3 << 20), 9)
    good = _with()
    pixels_at = good.index(b"IDAT") + 4
    orientation = chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0")
    text = chunk(b"zTXt", b"Comment\0\0" + large)
    beside = {
        "ztxt-3mib": text,
        "itxt-3mib": chunk(b"iTXt", b"Comment\0\x01\0\0\0" + large),
        "iccp-3mib": chunk(b"iCCP", b"profile\0\0" + large),
        "ztxt-100mib-in-all": b"".join(
            chunk(b"zTXt", b"Key%d\0\0" % n + zlib.compress(bytes(1 << 20), 9)) for n in range(100)
        ),
        "text-crc": chunk(b"tEXt", b"Comment\0hello", crc_off_by=1),
        "iccp-crc": chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"no profile"), crc_off_by=1),
        "iccp-garbage": chunk(b"iCCP", b"profile\0\0garbage"),
        "iccp-empty": chunk(b"iCCP", b""),
        "iccp-method": chunk(b"iCCP", b"profile\0\x07garbage"),
        "ztxt-method": chunk(b"zTXt", b"Comment\0\x07garbage"),
        "gama-short": chunk(b"gAMA", b"\0"),
        "srgb-empty": chunk(b"sRGB", b""),
        "chrm-short": chunk(b"cHRM", b"\0\0"),
        "phys-crc": chunk(b"pHYs", bytes(9), crc_off_by=9),
        "trns-crc": chunk(b"tRNS", struct.pack(">3H", *LEFT), crc_off_by=1),
        "actl-short": chunk(b"acTL", b"\0"),
        "actl-none": chunk(b"acTL", bytes(8)),
        "fctl-order": chunk(b"acTL", struct.pack(">II", 2, 0))
        + chunk(b"fcTL", struct.pack(">I", 7) + bytes(22)),
        "exif-garbage": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        "unknown": chunk(b"quUx", b"anything"),
    }
    return [
        *(ok(f"png-{name}", _with(extra)) for name, extra in beside.items()),
        ok("png-ztxt-3mib-at-the-end", _with(last=text)),
        ok(
            "png-exif-upside-down-and-text-crc", _with(orientation, beside["text-crc"]), RIGHT, LEFT
        ),
        broken("png-palette-without-plte", _png([_indices(8)] * SIDE, 8, 3)),
        broken(
            "png-palette-plte-crc",
            _png([_indices(8)] * SIDE, 8, 3, chunk(b"PLTE", bytes(6), crc_off_by=1)),
        ),
        broken("png-trns-short", _with(chunk(b"tRNS", b"\0"))),
        broken("png-without-pixels", good[: pixels_at - 8] + chunk(b"IEND", b"")),
        broken("png-cut-in-the-header", good[:20]),
        broken("png-cut-in-the-pixels", good[: pixels_at + 5]),
        broken("png-signature-alone", good[:8]),
        broken("png-header-crc", good[:29] + bytes(4) + good[33:]),
        broken("png-depth-3", _png(_rgb_rows(), 3, 2)),
        broken("png-pixels-garbage", good[:pixels_at] + b"garbage" + good[pixels_at + 7 :]),
        broken("png-rows-missing", _png(_rgb_rows(), 8, 2, width=400)),
        broken("png-of-60000x60000", _huge(60_000), "too_large"),
        broken("png-of-9000x9000", _huge(9_000), "too_large"),
        broken("png-of-11000x11000", _huge(11_000), "too_large"),
        broken("png-of-0x0", _huge(0)),
    ]


def _huge(side: int) -> bytes:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        PNG
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )
