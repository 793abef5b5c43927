"""CIRCO, as its authors published it: an evaluation of several right targets for each query.

    <root>/annotations/<split>.json
        [{"id", "reference_img_id", "relative_caption", "gt_img_ids", ...}, ...]
    <root>/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json    {"images": [{"id",
        "file_name"}, ...]}, the gallery of both splits
    <root>/COCO2017_unlabeled/unlabeled2017/<file_name>

The first of gt_img_ids is the target for which the caption was written. The test split keeps its
targets secret, and there is no train split. All images are one category, "circo"; ids are COCO's
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raycd.data import json_text
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.folder import Folder
from raycd.data.schema import Dataset, check_splits

CATEGORY = "circo"
SPLITS = ("val", "test")
GALLERY = "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
IMAGES = "COCO2017_unlabeled/unlabeled2017"


def read(root: str, splits: Sequence[str] = ("val",)) -> Dataset:
    """Read the annotations of `splits` ("val", "test") under `root`, a folder or URI.

    Raises DataError where a file is absent or malformed, a split is unknown, or a query names an
    image outside the gallery. An image without a file gets a null path.
    """
    check_splits("CIRCO", splits, SPLITS)
    folder, builder = Folder(root), DatasetBuilder()
    files = _gallery(folder)
    for split in dict.fromkeys(splits):
        builder.add_gallery(CATEGORY, split, files, source=GALLERY)
        name = f"annotations/{split}.json"
        entries = folder.json(name)
        if not isinstance(entries, list):
            raise json_text.wrong_shape(folder.resolve(name), entries, "a list of queries")
        for index, entry in enumerate(entries):
            where = f"{folder.resolve(name)}, entry {index}"
            builder.add_triplet(_triplet(entry, split, where), where=where)
    there = set(folder.names(IMAGES))
    return builder.build(
        {key: folder.resolve(f"{IMAGES}/{name}") for key, name in files.items() if name in there}
    )


def _gallery(folder: Folder) -> dict[str, str]:
    """Return image id -> name of its file, in COCO's order."""
    content = folder.json(GALLERY)
    try:
        files = {str(int(entry["id"])): str(entry["file_name"]) for entry in content["images"]}
    except (KeyError, TypeError, ValueError) as error:
        raise json_text.wrong_shape(
            folder.resolve(GALLERY), content, "an object with images, a list of {id, file_name}"
        ) from error
    return files


def _triplet(entry: Any, split: str, where: str) -> TripletRow:
    secret = split == "test"
    try:
        targets = [] if secret else [str(int(image_id)) for image_id in entry["gt_img_ids"]]
        caption, reference = entry["relative_caption"], str(int(entry["reference_img_id"]))
        triplet_id = f"{CATEGORY}/{split}/{int(entry['id'])}"
        if not isinstance(caption, str) or not (secret or targets):
            raise ValueError(caption)
    except (KeyError, TypeError, ValueError) as error:
        keys = "id, reference_img_id, relative_caption" + ("" if secret else ", gt_img_ids")
        raise json_text.wrong_shape(where, entry, f"an object with {keys}") from error
    first, *further = dict.fromkeys(targets) if targets else (None,)
    return TripletRow(
        triplet_id,
        CATEGORY,
        split,
        reference,
        first,
        [caption],
        further_targets=[image_id for image_id in further if image_id is not None] or None,
    )
