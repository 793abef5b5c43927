"""Picture files before Pillow decodes them: what a PNG can do without, what a JPEG would cost."""

from __future__ import annotations

import re
import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_SHOWN = (b"tRNS", b"eXIf")  # chunks that a PNG may lack, and that change how it looks
# The last of several 0xFF is the marker's; a + would try each run of them from each of its bytes
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_START_OF_SCAN, _END = 0xDA, 0xD9


def only_pixels(data: bytes) -> bytes | None:
    """Return a PNG without the chunks that its pixels do not need, or that are damaged.

    Viewers show a picture whose texts or colour profile are large or damaged; Pillow refuses it.
    None where nothing can be left out, or the file is not a PNG.
    """
    if not data.startswith(_PNG):
        return None
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        at += 12 + length
        optional = kind[0] & 0x20
        if not optional or (
            kind in _SHOWN and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])
        ):
            kept.append(chunk)
    whole = b"".join(kept)
    return None if len(whole) == len(data) else whole


def has_more_scans(data: bytes, most: int) -> bool:
    """Return whether the first picture of a JPEG has more than `most` scans.

    Each scan goes over all of its pixels, and may take only a few bytes of the file.
    """
    if not data.startswith(b"\xff\xd8") or data.count(bytes([0xFF, _START_OF_SCAN])) <= most:
        return False  # a quick upper bound: these two bytes may also be pixel data
    scans, found = 0, _MARKER.search(data, 2)
    while found and found[1][0] != _END and scans <= most:
        scans += found[1][0] == _START_OF_SCAN
        found = _MARKER.search(
            data, found.end() + int.from_bytes(data[found.end() : found.end() + 2])
        )
    return scans > most
