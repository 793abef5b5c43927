"""The store of the live gallery: its database and its pictures."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from PIL import Image

from raycd.data import images
from raycd.data.images import BrokenImage
from raycd.data.moved import Move
from raycd.errors import DataError, GalleryError
from raycd.gallery_db import GalleryDatabase, owner, stored
from raycd.gallery_db.pictures import Pictures
from raycd.gallery_db.stored import is_uploaded
from serve.args import NO_GALLERY, ServeArgs, is_fetched
from serve.args.galleries import SQLITE


@dataclass(frozen=True)
class GalleryStore:
    """The database of a live gallery, and the pictures that clients have added to it."""

    gallery_db: GalleryDatabase
    pictures: Pictures | None
    """None: pictures are not kept."""
    moved: Move = field(default_factory=Move)
    """How the run of the bundle, whose pictures the database names, was moved."""

    @classmethod
    def open(cls, args: ServeArgs, name: str) -> Self | None:
        """Open the store that the settings name; return None where they name none.

        Args:
            args: The settings.
            name: What tells this service from others.

        Raises:
            GalleryError: The database cannot be opened, another service has it, or this service had
                another file there.
        """
        if args.gallery == NO_GALLERY:
            return None
        url = args.gallery or str(Path(args.bundle).parent / SQLITE)
        file = stored.sqlite_file(url)
        held = None if file is None else owner.hold(file, name)  # before anything of it is changed
        with ExitStack() as undo:  # it may be opened again
            if file is not None and held is not None:
                undo.callback(os.close, held)
                owner.check(file, held)
            gallery_db = undo.enter_context(GalleryDatabase.open(url))
            if file is not None and held is not None:
                owner.note(file, held)
            undo.pop_all()
        root = stored.pictures_root(url, args.pictures)
        moved = Move() if is_fetched(args.bundle) else Move.of(Path(args.bundle))
        return cls(gallery_db, Pictures(root) if root else None, moved)

    def locate(self, path: str | None) -> str | None:
        """Return the path or URI of a picture that the gallery database names."""
        if self.pictures is not None and path is not None and is_uploaded(path):
            return self.pictures.locate(path)
        return self.moved.locate(path)

    def image(self, path: str | None, *, max_pixels: int, enough: int) -> Image.Image:
        """Return a picture that the gallery database names, as `images.load`; its store is asked
        once.

        Raises:
            BrokenImage: It is not there, or cannot be decoded.
            GalleryError: Where it is kept does not answer, or refuses.
        """
        location = self.locate(path)
        try:
            return images.load(
                location, max_pixels=max_pixels, min_side=1, patient=False, enough=enough
            )
        except BrokenImage:
            raise
        except DataError as error:
            raise unreachable(error.__cause__ or error) from error


def unreachable(cause: BaseException) -> GalleryError:
    """Return the error of pictures whose store has failed."""
    return GalleryError(
        "the gallery's pictures cannot be reached, or may not be read",
        "unreachable",
        got=f"{type(cause).__name__}: {cause}",
        do="check that their folder is there (pictures), and the service's right to read it",
    )
