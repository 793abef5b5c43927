"""CIRR, release rc2, as its authors published it.

    <root>/captions/cap.rc2.<split>.json
        [{"pairid", "reference", "target_hard", "caption", "img_set"}, ...]
    <root>/image_splits/split.rc2.<split>.json    {name: "./train/34/name.png", ...}
    <root>/<that path> or <root>/img_raw/<that path>
    <root>/attributes.json                        optional, see `attributes`

The published split test1 is called test here and keeps its targets secret. All images are one
category, "cirr". The subset of a triplet is the group of six, reference included, among which
recall_subset@k ranks. Soft targets are not read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

from raycd.data import attributes, json_text
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.folder import Folder
from raycd.data.schema import Dataset, check_splits
from raycd.errors import DataError

CATEGORY = "cirr"
PUBLISHED = {"train": "train", "val": "val", "test": "test1"}  # our name of a split -> the authors'


def read(root: str, splits: Sequence[str] = ("train", "val")) -> Dataset:
    """Read the annotations of `splits` ("train", "val", "test") under `root`, a folder or URI.

    Raises DataError where a folder or file is absent or malformed, a split is unknown, or a triplet
    names an image outside its split. An image without a file gets a null path.
    """
    folder = Folder(root)
    _check_present(folder, splits)
    builder = DatasetBuilder()
    files: dict[str, str] = {}
    for split in dict.fromkeys(splits):
        files |= _read_split(folder, builder, split)
    return builder.build(_image_paths(folder, files), attributes.read(folder))


def _check_present(folder: Folder, splits: Sequence[str]) -> None:
    check_splits("CIRR", splits, PUBLISHED)
    found = [f"{sub}/{name}" for sub in ("captions", "image_splits") for name in folder.names(sub)]
    missing = [name for split in splits for name in _files(split) if name not in found]
    if missing:
        raise DataError(
            f"annotations are missing under {folder.root}",
            got=", ".join(found) or "no file in captions/ or image_splits/",
            expected=f"also {', '.join(missing)}",
            do="point data.root at the folder that holds captions/ and image_splits/ of CIRR rc2",
        )


def _files(split: str) -> tuple[str, str]:
    return (
        f"captions/cap.rc2.{PUBLISHED[split]}.json",
        f"image_splits/split.rc2.{PUBLISHED[split]}.json",
    )


def _read_split(folder: Folder, builder: DatasetBuilder, split: str) -> dict[str, str]:
    """Add one split's gallery and triplets; return image id -> path as annotated."""
    captions, source = _files(split)
    files, entries = folder.json(source), folder.json(captions)
    if not isinstance(files, dict) or not all(isinstance(path, str) for path in files.values()):
        raise json_text.wrong_shape(folder.resolve(source), files, "an object: image name -> path")
    builder.add_gallery(CATEGORY, split, files, source=source)
    if not isinstance(entries, list):
        raise json_text.wrong_shape(folder.resolve(captions), entries, "a list of triplets")
    for index, entry in enumerate(entries):
        where = f"{folder.resolve(captions)}, entry {index}"
        builder.add_triplet(_triplet(entry, split, where), where=where)
    return {str(name): str(path) for name, path in files.items()}


def _triplet(entry: Any, split: str, where: str) -> TripletRow:
    try:
        target = entry.get("target_hard") if split == "test" else entry["target_hard"]
        row = TripletRow(
            triplet_id=f"{CATEGORY}/{split}/{entry['pairid']}",
            category=CATEGORY,
            split=split,
            reference=entry["reference"],
            target=target,
            captions=[entry["caption"]],
            subset=list(entry["img_set"]["members"]),
        )
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise _wrong_entry(entry, split, where) from error
    texts = [row.reference, *row.captions, *(row.subset or ())] + (
        [] if split == "test" and target is None else [target]
    )
    if not all(isinstance(text, str) for text in texts):
        raise _wrong_entry(entry, split, where)
    return row


def _image_paths(folder: Folder, files: dict[str, str]) -> dict[str, str]:
    """Return image id -> file, from one listing of each folder that the annotations name."""
    relative = {image_id: posixpath.normpath(path) for image_id, path in files.items()}
    parents = dict.fromkeys(posixpath.dirname(path) for path in relative.values())
    raw = [posixpath.join("img_raw", parent) for parent in parents]
    there = set(_list(folder, (*parents, *raw)))
    paths: dict[str, str] = {}
    for image_id, path in relative.items():
        for candidate in (path, f"img_raw/{path}"):
            if candidate in there:
                paths.setdefault(image_id, folder.resolve(candidate))
    return paths


def _list(folder: Folder, parents: Iterable[str]) -> Iterable[str]:
    for parent in parents:
        for name in folder.names(parent):
            yield posixpath.join(parent, name)


def _wrong_entry(entry: object, split: str, where: str) -> DataError:
    keys = "pairid, reference, caption, img_set.members" + (
        "" if split == "test" else ", target_hard"
    )
    return json_text.wrong_shape(where, entry, f"an object with {keys}")
