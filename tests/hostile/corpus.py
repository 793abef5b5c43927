"""Small odd files of pictures, drawn the same every time, each with its expected outcome."""

from __future__ import annotations

import struct
from typing import Any

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
    ok,
    saved,
)
from tests.hostile.odd_png import pngs
from tests.hostile.odd_tiff import tiffs


def corpus() -> list[Odd]:
    """Return all files."""
    odd = [*pngs(), *_jpegs(), *_webps(), *_gifs(), *_bmps(), *tiffs(), *_other()]
    assert len({one.name for one in odd}) == len(odd)
    return odd


# JPEG


def _jpegs() -> list[Odd]:
    wide: dict[str, Any] = {"near": 6}
    best: dict[str, Any] = {"quality": 95, "subsampling": 0}
    plain = saved(halves(), "JPEG", **best)
    progressive = saved(halves(), "JPEG", **best, progressive=True)
    inks = [Image.eval(band, lambda level: 255 - level) for band in halves().split()]
    cmyk = Image.merge("CMYK", [*inks, Image.new("L", (SIDE, SIDE))])
    exif = Image.Exif()
    exif[0x0112] = 3
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    start = plain.index(b"\xff\xc0") + 5
    return [
        ok("jpeg-baseline", plain, **wide),
        ok("jpeg-progressive", progressive, **wide),
        ok("jpeg-subsampled", saved(halves(), "JPEG", quality=95, subsampling=2), near=24),
        ok(
            "jpeg-restart-markers", saved(halves(), "JPEG", **best, restart_marker_blocks=1), **wide
        ),
        ok(
            "jpeg-grey",
            saved(halves(DARK, LIGHT).convert("L"), "JPEG", quality=95),
            DARK,
            LIGHT,
            **wide,
        ),
        ok("jpeg-cmyk-adobe", saved(cmyk, "JPEG", quality=95), **wide),
        ok(
            "jpeg-exif-upside-down", saved(halves(), "JPEG", **best, exif=exif), RIGHT, LEFT, **wide
        ),
        ok(
            "jpeg-exif-garbage",
            saved(halves(), "JPEG", **best, exif=b"Exif\0\0II*\0\xff\xff"),
            **wide,
        ),
        ok("jpeg-icc-garbage", saved(halves(), "JPEG", **best, icc_profile=b"garbage"), **wide),
        ok("jpeg-mpf-garbage", plain[:2] + b"\xff\xe2\x00\x0eMPF\0garbage!" + plain[2:], **wide),
        ok(
            "jpeg-mpo",
            saved(halves(), "MPO", save_all=True, append_images=[halves(RIGHT, LEFT)]),
            near=40,
        ),
        ok("jpeg-with-a-film-behind-it", plain + b"\xff\xda\0\x08junk" * 99, **wide),
        ok(
            "jpeg-with-previews-in-its-segments",
            plain[:2] + _segments(b"\xff\xda\xff\xda" * 99) + plain[2:],
            **wide,
        ),
        broken("jpeg-of-1000-scans", progressive[:-2] + last * 1000 + progressive[-2:]),
        # Each byte of the run may begin a marker: looked at from each, it takes minutes
        broken(
            "jpeg-of-a-run-of-ff",
            plain[: plain.index(b"\xff\xda")] + b"\xff" * 150_000 + b"\0" + b"\xff\xda" * 99,
        ),
        broken("jpeg-adobe-short", plain[:2] + b"\xff\xee\x00\x07Adobe" + plain[2:]),
        broken("jpeg-cut-in-the-header", plain[:60]),
        broken("jpeg-cut-in-the-pixels", saved(noise(), "JPEG", **best)[:1500]),
        broken("jpeg-progressive-cut", saved(noise(), "JPEG", **best, progressive=True)[:1500]),
        broken("jpeg-start-alone", plain[:3]),
        broken("jpeg-without-scan", plain[: plain.index(b"\xff\xda")] + b"\xff\xd9"),
        broken(
            "jpeg-of-65500x65500",
            plain[:start] + b"\xff\xdc\xff\xdc" + plain[start + 4 :],
            "too_large",
        ),
        broken("jpeg-of-7-components", plain[: start + 4] + b"\x07" + plain[start + 5 :]),
    ]


def _segments(body: bytes) -> bytes:
    return b"\xff\xe3" + struct.pack(">H", len(body) + 2) + body


# WebP, GIF, BMP


def _webps() -> list[Odd]:
    lossless = saved(halves(), "WEBP", lossless=True)
    lossy = saved(halves(), "WEBP", quality=100)
    seen_through = halves().convert("RGBA")
    seen_through.paste((0, 0, 0, 0), (0, 0, 8, 16))
    exif = Image.Exif()
    exif[0x0112] = 3
    frames: dict[str, Any] = {
        "save_all": True,
        "append_images": [halves(RIGHT, LEFT)],
        "lossless": True,
    }
    huge = bytearray(lossy)
    huge[26:30] = struct.pack("<HH", 16383, 16383)
    return [
        ok("webp-lossless", lossless),
        ok("webp-lossy", lossy, near=24),
        ok("webp-alpha", saved(seen_through, "WEBP", lossless=True), WHITE),
        ok("webp-animated", saved(halves(), "WEBP", **frames)),
        ok("webp-exif-upside-down", saved(halves(), "WEBP", lossless=True, exif=exif), RIGHT, LEFT),
        ok("webp-exif-garbage", saved(halves(), "WEBP", lossless=True, exif=b"garbage")),
        ok("webp-icc-garbage", saved(halves(), "WEBP", lossless=True, icc_profile=b"garbage")),
        broken("webp-cut", lossless[: len(lossless) - 9]),
        broken("webp-header-alone", lossless[:12]),
        broken("webp-of-16383x16383", bytes(huge), "too_large"),
    ]


def _gifs() -> list[Odd]:
    near: dict[str, Any] = {"near": 2}
    plain = saved(halves(), "GIF")
    descriptor = plain.index(b",\0\0\0\0")
    frames: dict[str, Any] = {"save_all": True, "append_images": [halves(RIGHT, LEFT)]}
    seen_through = Image.new("P", (SIDE, SIDE), 0)
    seen_through.putpalette([*LEFT, *RIGHT])
    seen_through.paste(1, (8, 0, 16, 16))
    comment = b"!\xfe" + (b"\xff" + b"a" * 255) * 2000 + b"\0"
    huge = plain[:6] + struct.pack("<HH", 65000, 65000) + plain[10:]
    beyond = plain[: descriptor + 5] + struct.pack("<HH", 60000, 60000) + plain[descriptor + 9 :]
    return [
        ok("gif-palette", plain, **near),
        ok("gif-interlaced", saved(halves(), "GIF", interlace=1), **near),
        ok("gif-transparent", saved(seen_through, "GIF", transparency=0), WHITE, **near),
        ok("gif-animated", saved(halves(), "GIF", **frames), **near),
        ok("gif-half-a-mib-of-comment", plain[:descriptor] + comment + plain[descriptor:], **near),
        broken("gif-cut", saved(noise(), "GIF")[:1500]),
        broken("gif-without-a-frame", plain[:descriptor] + b";"),
        broken("gif-signature-alone", plain[:6]),
        broken("gif-of-65000x65000", huge, "too_large"),
        broken("gif-with-a-frame-of-60000x60000", beyond, "too_large"),
    ]


def _bmps() -> list[Odd]:
    plain = saved(halves(), "BMP")
    palette = saved(halves().quantize(2), "BMP")
    seen_through = halves().convert("RGBA")
    return [
        ok("bmp-rgb", plain),
        ok("bmp-palette", palette),
        ok("bmp-1-bit", saved(halves(BLACK, WHITE).convert("1"), "BMP"), BLACK, WHITE),
        ok("bmp-grey", saved(halves(DARK, LIGHT).convert("L"), "BMP"), DARK, LIGHT),
        ok("bmp-rgba", saved(seen_through, "BMP")),
        broken("bmp-cut", plain[:-100]),
        broken("bmp-header-alone", plain[:20]),
        broken(
            "bmp-of-60000x60000",
            plain[:18] + struct.pack("<II", 60_000, 60_000) + plain[26:],
            "too_large",
        ),
        broken("bmp-of-depth-7", plain[:28] + b"\x07\0" + plain[30:]),
    ]


def _other() -> list[Odd]:
    avif = saved(halves(), "AVIF")
    return [
        broken("empty", b"", "empty"),
        broken("avif", avif, "not_an_image"),
        broken("avif-cut", avif[:100], "not_an_image"),
        broken("avif-called-jpg.jpg", avif, "not_an_image"),
        broken("ico", saved(halves(), "ICO"), "not_an_image"),
        broken("ppm", saved(halves(), "PPM"), "not_an_image"),
        broken("jpeg2000", saved(halves(), "JPEG2000"), "not_an_image"),
        broken("pdf.png", b"%PDF-1.7\n" + bytes(200), "not_an_image"),
        broken("html.png", b"<html>404 not found</html>", "not_an_image"),
        broken("svg.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        broken("postscript.png", b"%!PS-Adobe-3.0\n" + bytes(99), "not_an_image"),
        broken("zeros", bytes(5000), "not_an_image"),
        broken("one-byte", b"\xff", "not_an_image"),
    ]
