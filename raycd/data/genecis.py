"""GeneCIS, as its authors published it: four tasks, each query with a small gallery of its own.

    <root>/genecis/<task>.json
        [{"reference": image, "target": image, "gallery": [image, ...], "condition": text}, ...]
    <root>/VG_100K_all/<image_id>.jpg    attribute tasks; an image is {"image_id", "instance_bbox"}
    <root>/val2017/<12 digits>.jpg       object tasks (COCO); an image is {"val_image_id"}, or its
                                         number alone

Each task is a category. A query's gallery and target are its triplet's subset, so recall_subset@1,
2, 3 are GeneCIS's recall@1, 2, 3. An image of the attribute tasks is a part of a photograph, cut
out as GeneCIS's evaluation does (`raycd.data.parts`); its id is "<image_id>:<bounding box>".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raycd.data import json_text, parts
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.folder import Folder
from raycd.data.schema import Dataset
from raycd.errors import DataError

TASKS = ("focus_attribute", "change_attribute", "focus_object", "change_object")
ATTRIBUTES, OBJECTS = "VG_100K_all", "val2017"  # folders of photographs


def read(root: str, tasks: Sequence[str] = TASKS) -> Dataset:
    """Read tasks under `root`, a folder or URI, as split "val".

    Raises DataError where a file is absent or malformed. An image without a file gets a null path.
    """
    folder, builder = Folder(root), DatasetBuilder()
    files = {name: set(folder.names(name)) for name in (ATTRIBUTES, OBJECTS)}
    paths: dict[str, str] = {}
    for task in tasks:
        name = f"genecis/{task}.json"
        entries = folder.json(name)
        if not isinstance(entries, list) or not entries:
            raise json_text.wrong_shape(folder.resolve(name), entries, "a list of queries")
        rows = []
        for index, entry in enumerate(entries):
            where = f"{folder.resolve(name)}, entry {index}"
            images = _images(entry, where)
            reference, target, *gallery = (image_id for image_id, _ in images)
            subset = list(dict.fromkeys([target, *gallery]))
            rows.append(
                TripletRow(
                    f"{task}/val/{index}",
                    task,
                    "val",
                    reference,
                    target,
                    [_text(entry, where)],
                    subset,
                )
            )
            for image_id, (subfolder, file, part) in images:
                if file in files[subfolder]:
                    paths[image_id] = folder.resolve(f"{subfolder}/{file}") + part
        named = dict.fromkeys(
            image_id for row in rows for image_id in (row.reference, *(row.subset or ()))
        )
        builder.add_gallery(task, "val", named, source=name)
        for index, row in enumerate(rows):
            builder.add_triplet(row, where=f"{folder.resolve(name)}, entry {index}")
    return builder.build(paths)


def _images(entry: Any, where: str) -> list[tuple[str, tuple[str, str, str]]]:
    """Return reference, target and gallery: id, and (folder, file, which part of the picture)."""
    try:
        named = [entry["reference"], entry["target"], *entry["gallery"]]
        return [_image(image) for image in named]
    except (KeyError, TypeError, ValueError) as error:
        raise json_text.wrong_shape(
            where,
            entry,
            "an object with reference, target, gallery (a list) and condition; images are "
            "{image_id, instance_bbox}, {val_image_id} or numbers",
        ) from error


def _image(image: Any) -> tuple[str, tuple[str, str, str]]:
    # As GeneCIS's code: what has a number of COCO is a whole photograph, whatever else it has
    if isinstance(image, dict) and "val_image_id" not in image:
        left, top, width, height = (float(number) for number in image["instance_bbox"])
        number = int(image["image_id"])
        box = parts.Box(left, top, width, height)
        return f"{number}:{box}", (ATTRIBUTES, f"{number}.jpg", parts.dilated(box))
    number = int(image["val_image_id"] if isinstance(image, dict) else image)
    return str(number), (OBJECTS, f"{number:012d}.jpg", "")


def _text(entry: Any, where: str) -> str:
    text = entry.get("condition")
    if not isinstance(text, str):
        raise DataError(f"{where} has no condition", got=json_text.shown(text), expected="a text")
    return text
