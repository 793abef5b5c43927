"""The pictures of the gallery over HTTP: thumbnails, made when first asked for, and the files."""

from __future__ import annotations

import hashlib
from io import BytesIO
from typing import Any, NamedTuple, Self

from PIL import Image

from raycd.data import files, images, parts
from raycd.data.folder import is_local
from raycd.data.images import BrokenImage
from raycd.errors import DataError
from raycd.gallery.state import State
from raycd.search.cache import CountedCache
from serve.args import ServeArgs
from serve.errors import NoSuchImage, UnreadablePicture
from serve.live.store import GalleryStore, unreachable

SIDE = 256  # pixels of a thumbnail's longer side, at most


class PictureFile(NamedTuple):
    """A file as it goes over HTTP."""

    data: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, data: bytes, media_type: str) -> Self:
        """Return the file with its ETag."""
        return cls(data, media_type, f'"{hashlib.sha256(data).hexdigest()[:32]}"')


class _Thumbnail(NamedTuple):
    file: PictureFile
    state: object
    """That of the picture's file when it was made, if it is one of this machine."""


class GalleryPictures:
    """The pictures of a gallery's images, for any thread.

    Args:
        args: The limits, and how many thumbnails are kept.
        store: Where the pictures are that clients have added; None: the gallery does not change.

    Raises:
        NoSuchImage: The gallery has no such image.
        UnreadablePicture: Its file is missing or broken.
        GalleryError: Where the pictures are kept does not answer, or may not be read.
    """

    def __init__(self, args: ServeArgs, store: GalleryStore | None) -> None:
        self._args, self._store = args, store
        self.thumbnails: CountedCache[_Thumbnail] = CountedCache(args.thumbnail_cache)

    def original(self, view: State, image_id: str) -> PictureFile:
        """Return the file of an image; of a part of a picture, a PNG of that part alone."""
        path = _path(view, image_id)
        data = self._read(image_id, path)
        try:  # nothing but pictures is ever sent
            if path is None or parts.split_box(path)[1] is None:
                return PictureFile.of(data, Image.MIME[images.format_of(data)])
            return _file(self._decoded(data, path), "PNG")
        except BrokenImage as error:
            raise UnreadablePicture(image_id, error.reason) from error

    def thumbnail(self, view: State, image_id: str) -> PictureFile:
        """Return a JPEG of at most SIDE pixels a side."""
        path = _path(view, image_id)
        key, state = path or image_id, self._state(path)
        known = self.thumbnails.get(key)
        # Of a file that is away for a while, too
        if known is not None and state in (None, known.state):
            return known.file
        made = self._made(image_id, path)
        self.thumbnails.put(key, _Thumbnail(made, state))
        return made

    def _state(self, path: str | None) -> object:
        """Return what changes with a file of this machine, None where it is none or away.

        Uploads have a new path each time.
        """
        path = path if self._store is None else self._store.locate(path)
        file = None if path is None else parts.file_of(path)
        return files.states([file])[0] if file is not None and is_local(file) else None

    def _made(self, image_id: str, path: str | None) -> PictureFile:
        data = self._read(image_id, path)
        try:
            image = self._decoded(data, path, enough=SIDE)
        except BrokenImage as error:
            raise UnreadablePicture(image_id, error.reason) from error
        return _file(images.fitted(image, SIDE), "JPEG", quality=85)

    def _decoded(self, data: bytes, path: str | None, *, enough: int = 0) -> Image.Image:
        """Decode a picture, and cut it where the path names a part, as `images.load` does."""
        box, most = parts.split_box(path or "")[1], self._args.max_pixels
        image = images.decode(
            data, max_pixels=most, min_side=1, enough=enough if box is None else 0
        )
        return image if box is None else images.part(image, box)

    def _read(self, image_id: str, path: str | None) -> bytes:
        path = path if self._store is None else self._store.locate(path)
        try:
            if path is None:
                raise BrokenImage("no file", reason="missing")
            return images.read_bytes(path, patient=False)
        except BrokenImage as error:
            if isinstance(error.__cause__, PermissionError):
                raise unreachable(error.__cause__) from error
            raise UnreadablePicture(image_id, error.reason) from error
        except DataError as error:
            raise unreachable(error.__cause__ or error) from error


def _file(image: Image.Image, kind: str, **options: Any) -> PictureFile:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return PictureFile.of(buffer.getvalue(), Image.MIME[kind])


def _path(view: State, image_id: str) -> str | None:
    found = view.find(image_id)
    if found is None:
        raise NoSuchImage(image_id)
    return found.path
