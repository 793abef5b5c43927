"""Further galleries of a service: how they are declared, and what no two of them may share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import BeforeValidator

from raycd.config import Section
from raycd.config.fields import Text
from raycd.places import place

DEFAULT = "default"  # the name of the gallery that the paths without a name are of
SQLITE = "gallery.sqlite"  # beside the bundle's folder, where no database is named
NO_GALLERY = "none"  # `gallery`: the bundle's own, which does not change

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"  # it stands in addresses
NAMED = "a to z, digits, _ and -, up to 63 of them, a letter or a digit first"


class GalleryArgs(Section):
    """A gallery beside the default one. Its fields mean what those of the service mean."""

    bundle: Text
    gallery: str = ""
    gallery_engine: str = ""
    pictures: str = ""


def is_name(name: object) -> bool:
    """Return whether a gallery may have this name."""
    return isinstance(name, str) and not name.endswith("\n") and re.match(NAME, name) is not None


def _of(given: Any) -> Any:
    """Return what is validated. Raises ValueError, whose message names the gallery at fault."""
    if not isinstance(given, Mapping):
        raise ValueError("names of galleries, each with its bundle: {shoes: {bundle: ...}}")
    for name, one in given.items():
        if not is_name(name):
            raise ValueError(f"names of {NAMED}: {name!r} is none")
        if name == DEFAULT:
            raise ValueError(f"other names than {DEFAULT}, which is the service's own gallery")
        _check_fields(name, one)
    return dict(given)


def _check_fields(name: str, one: Any) -> None:
    if isinstance(one, GalleryArgs):
        return
    known = list(GalleryArgs.model_fields)
    if not isinstance(one, Mapping):
        raise ValueError(f"a mapping of {', '.join(known)} for {name}, and no text")
    if unknown := [field for field in one if field not in known]:
        raise ValueError(f"fields of {name} among {', '.join(known)}: {unknown[0]!r} is none")
    if not one.get("bundle"):
        raise ValueError(f"a bundle for {name}: a folder, models:/... or a URI")
    if wrong := [field for field, value in one.items() if not isinstance(value, str)]:
        raise ValueError(f"a text as {wrong[0]} of {name}")


GalleriesArgs = Annotated[dict[str, GalleryArgs], BeforeValidator(_of)]


def check_apart(kept: Mapping[str, tuple[str, str, str]]) -> None:
    """Raise ValueError where two galleries would write into one file or folder.

    `kept` has, by name, the bundle, the database and the folder of pictures of each.
    """
    targets: dict[str, str] = {}
    for name, (bundle, database, pictures) in kept.items():
        if database == NO_GALLERY:
            continue
        database = place(database or str(PurePath(bundle).parent / SQLITE))
        own = {"gallery": database}
        if pictures or "://" not in database:
            # As raycd.gallery_db.stored.pictures_root says
            own["pictures"] = place(pictures or f"{database}.pictures")
        for field, target in own.items():
            other = targets.setdefault(f"{field} {target}", name)
            if other != name:
                what = "database" if field == "gallery" else "folder of pictures"
                raise ValueError(
                    f"a {what} for each gallery: {other} and {name} have the same one; set "
                    f"{field} of {name}, or its gallery to {NO_GALLERY}"
                )
