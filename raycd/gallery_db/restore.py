"""Makes a gallery of a backup, in a place where there is none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import fsspec

from raycd.data.folder import is_local
from raycd.durable import PRIVATE_FILE, PRIVATE_FOLDER, sync
from raycd.errors import ConfigError
from raycd.gallery_db import owner
from raycd.gallery_db.backup import DATABASE, PICTURES, Backup, told, verify
from raycd.gallery_db.pictures import SCHEME, Pictures
from raycd.gallery_db.place import pictures_root, sqlite_file


def restore(folder: Path, url: str, root: str = "") -> Backup:
    """Make a SQLite gallery of a backup, at a path or sqlite:/// URL.

    The pictures come first, so that the database appears when all is there.

    Raises:
        ConfigError: There is a database, or there are pictures, already, or the backup has no
            database.
        GalleryError: A service still has the gallery, or the backup is not whole.
        DataError: The backup is not whole.
        RaycdError: A file cannot be read or written.
    """
    file, saved = sqlite_file(url), verify(folder)
    if file is None or DATABASE not in saved.files:
        what = (
            "only the database of a SQLite gallery can be restored here, and only to a SQLite file"
        )
        raise ConfigError(
            what, do="use pg_restore, and copy the folder of pictures (docs/gallery.md)"
        )
    pictures = Pictures(pictures_root(url, root))
    with told(f"{file} cannot be restored"):
        _refuse_to_overwrite(file, pictures)
        held = owner.hold(
            file, "jobs/gallery.py restore"
        )  # forgets which file the service before had opened
        try:
            _restore(saved, folder, file, pictures)
        finally:
            os.close(held)
    return saved


def _restore(saved: Backup, folder: Path, file: Path, pictures: Pictures) -> None:
    if is_local(pictures.root):
        Path(pictures.root).mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    for name in sorted(saved.files.keys() - {DATABASE}):
        _put(folder / name, pictures.locate(SCHEME + name.removeprefix(f"{PICTURES}/")))
    fresh = file.with_name(f".{file.name}.restoring")
    try:
        shutil.copyfile(folder / DATABASE, fresh)
        fresh.chmod(PRIVATE_FILE)
        sync(fresh)
        fresh.rename(file)
        sync(file.parent)
    finally:
        fresh.unlink(missing_ok=True)


def _refuse_to_overwrite(file: Path, pictures: Pictures) -> None:
    there = next((path for path in (file, *_beside(file)) if path.exists()), None)
    if there is not None:
        raise ConfigError(
            f"{there} is there already: a backup never overwrites a gallery",
            do="move it away first",
        )
    if any(True for _ in pictures):
        raise ConfigError(
            f"there are pictures in {pictures.root} already: a backup never overwrites them",
            do="move them away first, or name another place with --pictures",
        )


def _put(source: Path, target: str) -> None:
    store, inside = fsspec.url_to_fs(target)
    store.makedirs(inside.rpartition("/")[0], exist_ok=True)
    store.put_file(str(source), inside)


def _beside(file: Path) -> list[Path]:
    """Files that belong to a SQLite database while it is open."""
    return [file.with_name(f"{file.name}{ending}") for ending in ("-wal", "-shm")]
