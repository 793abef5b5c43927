"""The pictures of the gallery: thumbnails, made when they are first asked for, and the files
themselves.
"""

import hashlib
import threading
from io import BytesIO
from typing import NamedTuple

from cachetools import LRUCache
from PIL import Image

from raycd.data import images
from raycd.data.images import BrokenImage
from raycd.errors import DataError, GalleryError
from raycd.gallery.view import View
from serve.args import ServeArgs
from serve.problems import ProblemError
from serve.store import Store

SIDE = 256  # of a thumbnail, at most


class Picture(NamedTuple):
    """A file as it goes over HTTP."""

    data: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, data: bytes, media_type: str) -> "Picture":
        return cls(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')


class Pictures:
    """The pictures of a gallery's states, for any thread. `store` knows where those lie that
    clients have added.

    Raises ProblemError (404) where there is no such image or no such file, GalleryError where
    nobody can tell because their place does not answer or may not be read.
    """

    def __init__(self, args: ServeArgs, store: Store | None) -> None:
        self._args, self._store = args, store
        self._thumbnails: LRUCache[str, Picture] = LRUCache(args.thumbnail_cache)
        self._lock = threading.Lock()

    def original(self, view: View, image_id: str) -> Picture:
        """The file of an image."""
        data = self._read(image_id, _path(view, image_id))
        try:  # nothing but pictures is ever sent
            return Picture.of(data, Image.MIME[images.format_of(data)])
        except BrokenImage as error:
            raise _gone(image_id, error.reason) from error

    def thumbnail(self, view: View, image_id: str) -> Picture:
        """A JPEG of at most SIDE pixels a side."""
        path = _path(view, image_id)
        key = path or image_id  # a picture that takes another's place has another path
        with self._lock:
            known = self._thumbnails.get(key)
        if known is None:
            known = self._made(image_id, path)
            with self._lock:
                if self._thumbnails.maxsize:
                    self._thumbnails[key] = known
        return known

    def _made(self, image_id: str, path: str | None) -> Picture:
        data = self._read(image_id, path)
        try:
            image = images.decode(data, max_pixels=self._args.max_pixels, min_side=1)
        except BrokenImage as error:
            raise _gone(image_id, error.reason) from error
        buffer = BytesIO()
        images.fitted(image, SIDE).save(buffer, "JPEG", quality=85)
        return Picture.of(buffer.getvalue(), "image/jpeg")

    def _read(self, image_id: str, path: str | None) -> bytes:
        path = path if self._store is None else self._store.locate(path)
        try:
            if path is None:
                raise BrokenImage("no file", reason="missing")
            return images.read_bytes(path, patient=False)
        except BrokenImage as error:
            if isinstance(error.__cause__, PermissionError):
                raise _away(error.__cause__) from error
            raise _gone(image_id, error.reason) from error
        except DataError as error:
            raise _away(error.__cause__ or error) from error


def _path(view: View, image_id: str) -> str | None:
    position = view.position(image_id)
    if position is None:
        raise ProblemError(404, f"the gallery has no image {image_id!r}")
    return view.path(position)


def _away(cause: BaseException) -> GalleryError:
    return GalleryError(
        "the place of the gallery's pictures does not answer, or may not be read",
        "unreachable",
        got=f"{type(cause).__name__}: {cause}",
        do="check that it is there (pictures), and the service's right to read it",
    )


def _gone(image_id: str, reason: str) -> ProblemError:
    return ProblemError(404, f"the picture of {image_id!r} cannot be read", reason=reason)
