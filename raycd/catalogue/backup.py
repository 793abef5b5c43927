"""A gallery in a folder, as it was at one version, and back from there.

    gallery.sqlite   the database; absent where it is PostgreSQL's, which pg_dump backs up
    pictures/        those that clients have uploaded, under the names that the database gives them
    backup.json      `Backup`: what is in it, and the SHA-256 of every file

Made while the service writes. A picture that is removed while they are copied belongs to an image that has gone since
the database was copied: then that is copied once more, so that in the end they fit together.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import fsspec
from pydantic import BaseModel, ConfigDict, ValidationError

from raycd import __version__
from raycd.catalogue import Catalogue
from raycd.catalogue.check import integrity
from raycd.catalogue.place import Place, pictures_root
from raycd.durable import replacing
from raycd.errors import CatalogueError, ConfigError, DataError, RaycdError

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
    """Images whose pictures are not the service's to keep, such as those of the bundle: they are not in it."""
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
        CatalogueError: The database cannot be read, or its copy is damaged.
        RaycdError: A file cannot be read or written.
    """
    if folder.exists():
        raise ConfigError(f"{folder} is there already: a backup never overwrites another", do="name a new folder")
    with _told(f"the backup {folder} cannot be written"), replacing(folder) as fresh:
        files: dict[str, str] = {}
        before: list[str] | None = None
        while True:
            with _snapshot(place, fresh) as seen:
                lost = _copy_pictures(seen, fresh, files)
                version, images = seen.catalogue.version(), seen.catalogue.count()
                elsewhere = sum(row.path is not None and not seen.keeps(row.path) for row in seen.rows())
            if not lost or lost == before:  # gone before the first copy of the database: the gallery itself lacks them
                break
            before = lost
        if place.file is not None:
            files[DATABASE] = _sha256(fresh / DATABASE)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        saved = Backup(created=created, version=version, images=images, files=files, elsewhere=elsewhere, lost=lost)
        (fresh / MANIFEST).write_text(saved.model_dump_json(indent=1), encoding="utf-8")
        verify(fresh)
    return saved


def verify(folder: Path) -> Backup:
    """What a backup has, once every file has its hash and the database is whole. Raises DataError, CatalogueError."""
    try:
        saved = Backup.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(f"{folder} holds no backup", expected=f"{MANIFEST}, which the backup has written") from error
    for name, known in saved.files.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise DataError(f"the backup {folder} is not whole", got=f"{name}: {error.strerror}") from error
        if found != known:
            raise DataError(f"{folder / name} was changed or damaged", got=f"SHA-256 {found}", expected=known)
    if DATABASE in saved.files and (faults := integrity(folder / DATABASE)):
        raise CatalogueError(f"the database of the backup {folder} is damaged", "damaged", got=faults[0])
    return saved


def restore(folder: Path, file: Path, root: str = "") -> Backup:
    """Make a SQLite gallery of a backup. The pictures come first, so that the database appears when all is there.

    Raises:
        ConfigError: There is a database, or there are pictures, already, or the backup has no database.
        DataError, CatalogueError: The backup is not whole.
        RaycdError: A file cannot be read or written.
    """
    root = pictures_root(str(file), root)
    saved = verify(folder)
    if DATABASE not in saved.files:
        raise ConfigError(
            f"{folder} has pictures only: its database is PostgreSQL's", do="use pg_restore (docs/gallery.md)"
        )
    with _told(f"{file} cannot be restored"):
        _refuse_to_overwrite(file, root)
        target, base = fsspec.core.url_to_fs(root)
        for name in saved.files.keys() - {DATABASE}:
            to = f"{base}/{name.removeprefix(f'{PICTURES}/')}"
            target.makedirs(to.rpartition("/")[0], exist_ok=True)
            target.put_file(str(folder / name), to)
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f".{file.name}.restoring")
        try:
            shutil.copyfile(folder / DATABASE, fresh)
            Catalogue.open(str(fresh)).close()  # brings the schema of an older raycd up to date
            fresh.rename(file)
        finally:
            for left in (fresh, *_beside(fresh)):
                left.unlink(missing_ok=True)
    return saved


def _refuse_to_overwrite(file: Path, root: str) -> None:
    there = next((path for path in (file, *_beside(file)) if path.exists()), None)
    if there is not None:
        raise ConfigError(f"{there} is there already: a backup never overwrites a gallery", do="move it away first")
    target, base = fsspec.core.url_to_fs(root)
    with suppress(FileNotFoundError):
        if target.ls(base, detail=False):
            raise ConfigError(
                f"there are files in {root} already: a backup never overwrites pictures",
                do="move them away first, or name another place with --pictures",
            )


def _beside(file: Path) -> list[Path]:
    """Files that belong to a SQLite database while it is open."""
    return [file.with_name(f"{file.name}{ending}") for ending in ("-wal", "-shm")]


@contextmanager
def _snapshot(place: Place, folder: Path) -> Iterator[Place]:
    """The gallery at one version, copied to the folder; of PostgreSQL's, as it is."""
    if place.file is None:
        yield place
        return
    copy = folder / DATABASE
    with closing(sqlite3.connect(place.file)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)  # all pages in one step: with more of them, it begins again after each write
        target.execute("PRAGMA journal_mode=DELETE")  # one file, which can be read where nobody may write
    with Catalogue.open(str(copy), migrate=False) as catalogue:
        yield Place(catalogue, copy, place.pictures)


def _copy_pictures(place: Place, folder: Path, files: dict[str, str]) -> list[str]:
    """Add the pictures that the database names, as far as they are not there. Returns the images that have lost theirs.

    `files`, name -> SHA-256, gets those that were copied.
    """
    lost = []
    for row in place.rows():
        name = f"{PICTURES}/{row.path}"
        if not place.keeps(row.path) or name in files:
            continue
        try:
            with fsspec.open(place.locate(row.path), "rb") as file:
                data = file.read()
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
def _told(what: str) -> Iterator[None]:
    """Failures of disk, store and SQLite as errors for users."""
    try:
        yield
    except sqlite3.Error as error:
        raise RaycdError(what, got=f"SQLite: {error}") from error
    except OSError as error:
        do = "free some space and start again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        raise RaycdError(what, got=f"{error.filename or ''} {error.strerror or error}".strip(), do=do) from error
