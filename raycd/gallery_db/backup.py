"""A gallery in a folder, as it was at one version, and back from there.

    gallery.sqlite   the database; absent where it is PostgreSQL's, which pg_dump backs up
    pictures/        those that clients have uploaded
    backup.json      `Backup`: what is in it, and the SHA-256 of every file

Made while the service writes. A picture that is removed while they are copied belongs to an image
that has gone since the database was copied: then that is copied once more, so that in the end they
fit together.
"""

from __future__ import annotations

import errno
import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import fsspec
from pydantic import BaseModel, ConfigDict, ValidationError

from raycd import __version__
from raycd.durable import PRIVATE_FOLDER, replacing
from raycd.errors import ConfigError, DataError, GalleryError, RaycdError
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.invariants import integrity
from raycd.gallery_db.pictures import SCHEME
from raycd.gallery_db.place import Place, is_kept

DATABASE, PICTURES, MANIFEST = "gallery.sqlite", "pictures", "backup.json"


class Backup(BaseModel):
    """backup.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    raycd: str = __version__
    created: str
    version: int
    """The gallery's; of PostgreSQL's, when the last picture was copied."""
    images: int
    files: dict[str, str]
    """Name in the folder -> SHA-256."""
    elsewhere: int
    """Images whose pictures are not the service's to keep, such as those of the bundle: they are
    not in it.
    """
    lost: list[str]
    """Images whose pictures were not there."""

    @property
    def pictures(self) -> int:
        """How many are in it."""
        return len(self.files) - (DATABASE in self.files)


def save(place: Place, folder: Path) -> Backup:
    """Copy a gallery to a new folder, which appears when it is whole.

    Raises:
        ConfigError: The folder is there already.
        GalleryError: The database cannot be read, or its copy is damaged.
        RaycdError: A file cannot be read or written.
    """
    if folder.exists():
        raise ConfigError(
            f"{folder} is there already: a backup never overwrites another", do="name a new folder"
        )
    with (
        told(f"the backup {folder} cannot be written"),
        replacing(folder, mode=PRIVATE_FOLDER) as fresh,
    ):
        files: dict[str, str] = {}
        before: list[str] | None = None
        while True:
            with _snapshot(place, fresh) as seen:
                lost = _copy_pictures(seen, fresh, files)
                version, images = seen.gallery_db.version(), seen.gallery_db.count()
                elsewhere = sum(
                    row.path is not None and not is_kept(row.path) for row in seen.rows()
                )
            if (
                not lost or lost == before
            ):  # gone before the first copy of the database: the gallery itself lacks them
                break
            before = lost
        if place.file is not None:
            _close(fresh / DATABASE)
            files[DATABASE] = _sha256(fresh / DATABASE)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        saved = Backup(
            created=created,
            version=version,
            images=images,
            files=files,
            elsewhere=elsewhere,
            lost=lost,
        )
        (fresh / MANIFEST).write_text(saved.model_dump_json(indent=1), encoding="utf-8")
        verify(fresh)
    return saved


def verify(folder: Path) -> Backup:
    """What a backup has, once every file has its hash and the database is whole. Raises DataError,
    GalleryError.
    """
    try:
        saved = Backup.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{folder} holds no backup", expected=f"{MANIFEST}, which the backup has written"
        ) from error
    for name, known in saved.files.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise DataError(
                f"the backup {folder} is not whole", got=f"{name}: {error.strerror}"
            ) from error
        if found != known:
            raise DataError(
                f"{folder / name} was changed or damaged", got=f"SHA-256 {found}", expected=known
            )
    if DATABASE in saved.files and (faults := integrity(folder / DATABASE)):
        raise GalleryError(
            f"the database of the backup {folder} is damaged", "damaged", got=faults[0]
        )
    return saved


@contextmanager
def _snapshot(place: Place, folder: Path) -> Iterator[Place]:
    """The gallery at one version, copied to the folder; of PostgreSQL's, as it is."""
    if place.file is None:
        yield place
        return
    copy = folder / DATABASE
    with closing(sqlite3.connect(place.file)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(
            target
        )  # all pages in one step: with more of them, it begins again after each write
    with GalleryDatabase.open(str(copy), migrate=False) as gallery_db:
        yield Place(str(copy), gallery_db, place.pictures, moved=place.moved)


def _close(database: Path) -> None:
    """Make it one file, which can be read where nobody may write, too."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _copy_pictures(place: Place, folder: Path, files: dict[str, str]) -> list[str]:
    """Add the pictures that the database names, as far as they are not there. Returns the images
    that have lost theirs.

    `files`, name -> SHA-256, gets those that were copied.
    """
    lost = []
    for row in place.rows():
        name = f"{PICTURES}/{(row.path or '').removeprefix(SCHEME)}"
        if not is_kept(row.path) or name in files:
            continue
        try:
            with fsspec.open(place.locate(row.path), "rb") as file:
                data: bytes = file.read()
        except FileNotFoundError:
            lost.append(row.image_id)
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        files[name] = hashlib.sha256(data).hexdigest()
    return lost


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def told(what: str) -> Iterator[None]:
    """Failures of disk, store and SQLite as errors for users."""
    try:
        yield
    except sqlite3.Error as error:
        raise RaycdError(what, got=f"SQLite: {error}") from error
    except OSError as error:
        do = (
            "free some space and start again"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else None
        )
        raise RaycdError(
            what, got=f"{error.filename or ''} {error.strerror or error}".strip(), do=do
        ) from error
