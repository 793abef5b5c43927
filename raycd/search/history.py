"""The searches before a search, as a text that it brings along: no service keeps them.

The text has the first image's feature, all modification texts, and the encoder's fingerprint. It
says nothing that its sender could not have asked for, so it is not signed: whoever changes it has
changed the query.
"""

from __future__ import annotations

import base64
import binascii
import json

import numpy as np
import torch
from numpy.typing import NDArray

from raycd.api.requests import MAX_REFERENCE
from raycd.errors import DataError
from raycd.model.embed_maps import cut
from raycd.search.query import History, Prepared

TEXTS = 8  # that are kept, the last ones
_VERSION = b"\x01"
_FINGERPRINT = 12  # hexadecimal digits
_DIM_AT = len(_VERSION) + _FINGERPRINT // 2
_START = _DIM_AT + 2


class NoHistory(DataError):
    """A text that is not a history."""

    def __init__(self) -> None:
        super().__init__("the reference is not the history of an answer, or a part of one")


class OtherEncoder(DataError):
    """A history whose feature another encoder has made."""

    def __init__(self) -> None:
        super().__init__("the reference is of another model than the one that answers now")


def after(one: Prepared, image_D: NDArray[np.float32]) -> History:
    """Return the history of what follows a query whose un-normalised image is `image_D`, or NaN."""
    before, text = one.query.history or History(None, ()), one.query.text.strip()
    first_D = before.image_D
    if first_D is None and not np.isnan(image_D[0]):
        first_D = image_D
    return History(first_D, (*before.texts, *([text] if text else []))[-TEXTS:])


def pack(history: History, fingerprint: str) -> str:
    """Return the text of a history, of the encoder with this fingerprint.

    Where it would be longer than a `reference` may be, the oldest texts are left out, and of the
    last one its end.
    """
    texts = history.texts
    while (
        len(text := _packed(history._replace(texts=texts), fingerprint)) > MAX_REFERENCE and texts
    ):
        half = texts[0][: len(texts[0]) // 2]
        texts = texts[1:] or ((half,) if half else ())
    return text


def _packed(history: History, fingerprint: str) -> str:
    none_D = np.empty(0, np.float32)
    image_D = none_D if history.image_D is None else history.image_D
    parts = (
        _VERSION,
        bytes.fromhex(fingerprint[:_FINGERPRINT]),
        len(image_D).to_bytes(2, "little"),
        cut(torch.from_numpy(image_D)).numpy().astype("<f2").tobytes(),
        json.dumps(history.texts, ensure_ascii=False).encode(),
    )
    return base64.urlsafe_b64encode(b"".join(parts)).decode().rstrip("=")


def unpack(text: str, fingerprint: str, dim: int, max_text: int) -> History:
    """Return the history of a text.

    Raises:
        OtherEncoder: Its image's feature is of another encoder.
        NoHistory: It is none that `pack` has made, or a text of it is longer than `max_text`.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):  # of letters that are not ASCII
        raise NoHistory from None
    size = int.from_bytes(data[_DIM_AT:_START], "little")
    if data[:1] != _VERSION or len(data) < _START:
        raise NoHistory
    if size and data[1:_DIM_AT] != bytes.fromhex(fingerprint[:_FINGERPRINT]):
        raise OtherEncoder
    end = _START + 2 * size
    if size not in (0, dim) or len(data) < end:
        raise NoHistory
    image_D = np.frombuffer(data[_START:end], "<f2").astype(np.float32)
    length = float(np.linalg.norm(image_D))
    if size and not (np.isfinite(length) and length > 0):
        raise NoHistory
    return History(image_D if size else None, _texts(data[end:], max_text))


def _texts(data: bytes, max_text: int) -> tuple[str, ...]:
    try:
        texts = json.loads(data)
    except (ValueError, RecursionError):
        raise NoHistory from None
    good = isinstance(texts, list) and len(texts) <= TEXTS
    if not good or not all(isinstance(one, str) and len(one) <= max_text for one in texts):
        raise NoHistory
    try:  # JSON may name halves of characters, which no tokenizer reads
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise NoHistory from None
    return tuple(texts)
