"""Backups: a gallery in a folder, as it was at one version, and back from there.

    gallery.sqlite   the database; absent for PostgreSQL, which pg_dump backs up
    pictures/        those that clients have uploaded
    backup.json      `Backup`: what is in it, and the SHA-256 of every file

A backup is made while the service writes. A picture that is removed during the copy belongs to an
image that was removed after the database was copied: then the database is copied once more, so that
in the end both fit together.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from raycd import __version__, stores
from raycd.data.folder import is_local
from raycd.durable import PRIVATE_FILE, PRIVATE_FOLDER, replace_file, replace_folder, sha256, sync
from raycd.errors import ConfigError, DataError, GalleryError, RaycdError
from raycd.gallery_db import GalleryDatabase, owner
from raycd.gallery_db.check import integrity
from raycd.gallery_db.pictures import SCHEME, Pictures
from raycd.gallery_db.stored import StoredGallery, is_uploaded, pictures_root, sqlite_file

DATABASE, PICTURES, MANIFEST = "gallery.sqlite", "pictures", "backup.json"


class Backup(BaseModel):
    """The content of backup.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    raycd: str = __version__
    created: str
    version: int
    """Version of the gallery; for PostgreSQL, when the last picture was copied."""
    images: int
    files: dict[str, str]
    """Name in the folder -> SHA-256."""
    elsewhere: int
    """Images whose pictures the service does not keep, such as the bundle's: not in the backup."""
    lost: list[str]
    """Images whose pictures were not there."""

    @property
    def pictures(self) -> int:
        """Number of pictures in the backup."""
        return len(self.files) - (DATABASE in self.files)


def save(stored: StoredGallery, folder: Path) -> Backup:
    """Copy a gallery to a new folder, which appears when it is complete.

    Raises:
        ConfigError: The folder exists.
        GalleryError: The database cannot be read, or its copy is damaged.
        RaycdError: A file cannot be read or written.
    """
    if folder.exists():
        what = f"{folder} is there already: a backup never overwrites another"
        raise ConfigError(what, do="name a new folder")
    with (
        _translate_errors(f"the backup {folder} cannot be written"),
        replace_folder(folder, mode=PRIVATE_FOLDER, new=True) as fresh,
    ):
        files: dict[str, str] = {}
        before: list[str] | None = None
        while True:
            with _snapshot(stored, fresh) as snapshot:
                lost = _copy_pictures(snapshot, fresh, files)
                version, images = snapshot.gallery_db.version(), snapshot.gallery_db.count()
                elsewhere = sum(
                    row.path is not None and not is_uploaded(row.path) for row in snapshot.rows()
                )
            # Lost twice: gone before the first copy of the database, so the gallery lacks them.
            if not lost or lost == before:
                break
            before = lost
        if stored.file is not None:
            _leave_wal(fresh / DATABASE)
            files[DATABASE] = sha256(fresh / DATABASE)
        saved = Backup(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
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
    """Check the hash of every file and the database; return what the backup contains.

    Raises:
        DataError: It is not a backup, or a file is missing or was changed.
        GalleryError: The database is damaged.
    """
    try:
        saved = Backup.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        what = f"{folder} is not a backup"
        raise DataError(what, expected=f"{MANIFEST}, which the backup has written") from error
    for name, known in saved.files.items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            what = f"the backup {folder} is incomplete"
            raise DataError(what, got=f"{name}: {error.strerror}") from error
        if found != known:
            what = f"{folder / name} was changed or damaged"
            raise DataError(what, got=f"SHA-256 {found}", expected=known)
    if DATABASE in saved.files and (faults := integrity(folder / DATABASE)):
        what = f"the database of the backup {folder} is damaged"
        raise GalleryError(what, "damaged", got=faults[0])
    return saved


def restore(folder: Path, url: str, root: str = "") -> Backup:
    """Make a SQLite gallery from a backup, at a path or sqlite:/// URL where there is none.

    Pictures are copied first, so that the database appears when everything is there.

    Raises:
        ConfigError: A database or pictures exist already, or the backup has no database.
        GalleryError: A service still has the gallery, or the backup's database is damaged.
        DataError: The backup is incomplete or was changed.
        RaycdError: A file cannot be read or written.
    """
    file, saved = sqlite_file(url), verify(folder)
    if file is None or DATABASE not in saved.files:
        raise ConfigError(
            "only the database of a SQLite gallery can be restored, and only to a SQLite file",
            do="use pg_restore, and copy the folder of pictures (docs/gallery.md)",
        )
    pictures = Pictures(pictures_root(url, root))
    with _translate_errors(f"{file} cannot be restored"):
        _refuse_to_overwrite(file, pictures)
        # Another name than any service's: which file the service before had opened is forgotten.
        held = owner.hold(file, "jobs/gallery.py restore")
        try:
            _restore(saved, folder, file, pictures)
        finally:
            os.close(held)
    return saved


def _restore(saved: Backup, folder: Path, file: Path, pictures: Pictures) -> None:
    if is_local(pictures.root):
        Path(pictures.root).mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        sync(Path(pictures.root).parent)
    for name in sorted(saved.files.keys() - {DATABASE}):
        pictures.restore(SCHEME + name.removeprefix(f"{PICTURES}/"), folder / name)
    with replace_file(file, mode=PRIVATE_FILE) as fresh:
        shutil.copyfile(folder / DATABASE, fresh)
        _rename(fresh)


def _rename(database: Path) -> None:
    """Give a copy a name of its own: a search engine's collection belongs to one database."""
    with closing(sqlite3.connect(database)) as connection, connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(raycd_gallery)")}
        if "uid" in columns:  # not of an older schema
            connection.execute("UPDATE raycd_gallery SET uid = ?", (uuid4().hex,))


def _refuse_to_overwrite(file: Path, pictures: Pictures) -> None:
    files = [file.with_name(f"{file.name}{ending}") for ending in ("", "-wal", "-shm")]
    existing = next((path for path in files if path.exists()), None)
    if existing is not None:
        what = f"{existing} is there already: a backup never overwrites a gallery"
        raise ConfigError(what, do="move it away first")
    if any(True for _ in pictures):
        what = f"there are pictures in {pictures.root} already: a backup never overwrites them"
        raise ConfigError(what, do="move them away first, or name another folder with --pictures")


@contextmanager
def _snapshot(stored: StoredGallery, folder: Path) -> Iterator[StoredGallery]:
    """Copy a SQLite gallery, at one version, to the folder; give PostgreSQL's as it is."""
    if stored.file is None:
        yield stored
        return
    copy = folder / DATABASE
    with closing(sqlite3.connect(stored.file)) as source, closing(sqlite3.connect(copy)) as target:
        # All pages in one step: with more steps, SQLite begins again after each write.
        source.backup(target)
    with GalleryDatabase.open(str(copy), migrate=False) as gallery_db:
        yield StoredGallery(str(copy), gallery_db, stored.pictures, moved=stored.moved)


def _leave_wal(database: Path) -> None:
    """Make a database one file, which can be read where nobody may write."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")


def _copy_pictures(stored: StoredGallery, folder: Path, files: dict[str, str]) -> list[str]:
    """Copy the pictures that the database names, but for those in `files` (name -> SHA-256).

    Adds the copied ones to `files`; returns the images whose pictures are not there.
    """
    lost = []
    for row in stored.rows():
        name = f"{PICTURES}/{(row.path or '').removeprefix(SCHEME)}"
        if not is_uploaded(row.path) or name in files:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                stores.opened(stored.locate(row.path) or "") as source,
                (folder / name).open("wb") as copy,
            ):
                shutil.copyfileobj(source, copy)
        except FileNotFoundError:
            lost.append(row.image_id)
            continue
        files[name] = sha256(folder / name)
    return lost


@contextmanager
def _translate_errors(what: str) -> Iterator[None]:
    """Turn failures of disk, store and SQLite into RaycdError."""
    try:
        yield
    except sqlite3.Error as error:
        raise RaycdError(what, got=f"SQLite: {error}") from error
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RaycdError(
            what,
            got=f"{error.filename or ''} {error.strerror or error}".strip(),
            do="free some space and start again" if full else None,
        ) from error
