"""The gallery table of a user's own data, which `raycd.data.manifest` reads, as images to import.

Columns: image_id; path, absolute or relative to the table's folder or another root; optionally
category, attributes and others. Rows of one image_id are one image in several categories. A
malformed table is refused as a whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raycd.data import attributes, rows
from raycd.data.folder import Folder
from raycd.data.manifest import GALLERY_COLUMNS
from raycd.errors import DataError


def read(path: Path) -> list[dict[str, Any]]:
    """Return images for Client.import_images, in the order of their first rows.

    Raises:
        DataError: The table cannot be read or is malformed.
    """
    folder = Folder(str(path.absolute().parent))
    table, found = rows.read(folder, path.name, GALLERY_COLUMNS, others=True)
    if missing := {"image_id", "path"} - set(found):
        got, expected = ", ".join(found) or "no columns", f"also {', '.join(sorted(missing))}"
        raise DataError(
            f"{path.name} lacks a column",
            got=got,
            expected=expected,
            do="see docs/data.md, own data",
        )
    images: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(table, 1):
        where = f"{path.name}, row {number}"
        if row["image_id"] in (None, "") or row["path"] in (None, ""):
            raise DataError(
                f"{where} is incomplete",
                got=f"{row['image_id']}, {row['path']}",
                expected="image_id, path",
            )
        given = {
            "image": str(row["path"]),
            "attributes": attributes.of_row(row, GALLERY_COLUMNS, where),
        }
        image_id = str(row["image_id"])
        image = images.setdefault(image_id, {"image_id": image_id, **given, "category": []})
        if any(image[name] != given[name] for name in given):
            raise DataError(
                f"{where} describes an image differently",
                got=f"{image_id}: {given}",
                expected="the same path and attributes in all rows of an image",
            )
        if row.get("category") not in (None, "", *image["category"]):
            image["category"].append(str(row["category"]))
    return list(images.values())
