"""Fashion-IQ as its authors published it.

    <root>/captions/cap.<category>.<split>.json
        [{"candidate": id, "target": id, "captions": [text, text]}, ...]
    <root>/image_splits/split.<category>.<split>.json    [id, ...]
    <root>/images/<id>.jpg, <root>/<category>/<id>.jpg or <root>/images/<category>/<id>.jpg
        (or .jpeg, .png)
    <root>/attributes.json                               optional, see `attributes`

The test split keeps its targets secret. An id in several categories or splits is one image.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from raycd.data import attributes, json_text
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.folder import Folder
from raycd.data.schema import Dataset
from raycd.errors import DataError

EXTENSIONS = ("jpg", "jpeg", "png")  # the first that exists is taken
_CAPTIONS_NAME = re.compile(r"cap\.(.+)\.[^.]+\.json")


def read(root: str, categories: Sequence[str], splits: Sequence[str] = ("train", "val")) -> Dataset:
    """Read the annotations of `categories` and `splits` under `root`, a folder or fsspec URI.

    Raises DataError where a folder or file is absent or malformed, a category is unknown, or a
    triplet names an image outside its split. An image without a file gets a null path.
    """
    folder = Folder(root)
    _check_present(folder, categories, splits)
    builder = DatasetBuilder()
    for category in dict.fromkeys(categories):
        for split in dict.fromkeys(splits):
            _read_split(folder, builder, category, split)
    return builder.build(_image_paths(folder, categories), attributes.read(folder))


def captions_file(category: str, split: str) -> str:
    """Return the path of the triplets of a category and split, relative to the root."""
    return f"captions/cap.{category}.{split}.json"


def split_file(category: str, split: str) -> str:
    """Return the path of the image ids of a category and split, relative to the root."""
    return f"image_splits/split.{category}.{split}.json"


def _check_present(folder: Folder, categories: Sequence[str], splits: Sequence[str]) -> None:
    found = [f"{sub}/{name}" for sub in ("captions", "image_splits") for name in folder.names(sub)]
    matches = (_CAPTIONS_NAME.fullmatch(name.removeprefix("captions/")) for name in found)
    known = list(dict.fromkeys(match[1] for match in matches if match))
    if not categories or not splits:
        raise DataError(
            "no category or no split was asked for",
            got=f"{list(categories)} and {list(splits)}",
            expected="one or more",
        )
    for category in categories:
        if known and category not in known:
            near = difflib.get_close_matches(category, known, n=1, cutoff=0.0)[0]
            raise DataError(
                f"{folder.root} has no category {category}",
                got=category,
                expected=f"one of {', '.join(known)}",
                do=f"set data.categories; did you mean {near}?",
            )
    wanted = [
        name(c, s) for c in categories for s in splits for name in (captions_file, split_file)
    ]
    missing = [name for name in wanted if name not in found]
    if missing:
        annotations = [name for name in found if name.endswith(".json")]
        raise DataError(
            f"annotations are missing under {folder.root}",
            got=", ".join(annotations) or "no file in captions/ or image_splits/",
            expected=f"also {', '.join(missing)}",
            do="point data.root at the folder that holds captions/ and image_splits/ of Fashion-IQ",
        )


def _read_split(folder: Folder, builder: DatasetBuilder, category: str, split: str) -> None:
    source, captions = split_file(category, split), captions_file(category, split)
    image_ids, entries = folder.json(source), folder.json(captions)
    _check_list(image_ids, folder.resolve(source), "a list of image ids")
    for index, image_id in enumerate(image_ids):
        if not isinstance(image_id, str) or not image_id:
            raise json_text.wrong_shape(
                f"{folder.resolve(source)}, entry {index}", image_id, "an image id, a string"
            )
    builder.add_gallery(category, split, image_ids, source=source)
    _check_list(entries, folder.resolve(captions), "a list of triplets")
    for index, entry in enumerate(entries):
        where = f"{folder.resolve(captions)}, entry {index}"
        row = _triplet(entry, category, split, index, where)
        builder.add_triplet(row, where=where)


def _triplet(entry: Any, category: str, split: str, index: int, where: str) -> TripletRow:
    target_known = isinstance(entry, dict) and (split != "test" or entry.get("target") is not None)
    names = ("candidate", "target") if target_known else ("candidate",)
    captions = entry.get("captions") if isinstance(entry, dict) else None
    if (
        not isinstance(captions, list)
        or not captions
        or not all(isinstance(caption, str) for caption in captions)
        or not all(isinstance(entry.get(name), str) for name in names)
    ):
        keys = "candidate, target" if split != "test" else "candidate"
        raise json_text.wrong_shape(
            where, entry, f"an object with {keys} (image ids) and captions (a list of strings)"
        )
    target = entry["target"] if target_known else None
    return TripletRow(
        f"{category}/{split}/{index}", category, split, entry["candidate"], target, captions
    )


def _image_paths(folder: Folder, categories: Sequence[str]) -> dict[str, str]:
    """Return image id -> file, from one listing of each folder that may hold images."""
    paths: dict[str, str] = {}
    for subfolder in ("images", *categories, *(f"images/{category}" for category in categories)):
        ranked: dict[str, tuple[int, str]] = {}
        for name in folder.names(subfolder):
            image_id, _, extension = name.rpartition(".")
            if extension.lower() in EXTENSIONS:
                rank = (EXTENSIONS.index(extension.lower()), name)
                ranked[image_id] = min(rank, ranked.get(image_id, rank))
        for image_id, (_, name) in ranked.items():
            paths.setdefault(image_id, folder.resolve(f"{subfolder}/{name}"))
    return paths


def _check_list(content: Any, file: str, expected: str) -> None:
    if not isinstance(content, list):
        raise json_text.wrong_shape(file, content, expected)
