"""The texts that a catalogue has of an image: its title, its attributes, and both."""

from __future__ import annotations

from collections.abc import Mapping

from raycd.data.schema import Dataset


def texts(attributes: Mapping[str, str], title: str) -> tuple[str, ...]:
    """Return the texts of an image of these attributes, the first of which is the fullest.

    They are title and attributes together, each alone, or what there is of them.
    """
    own = attributes.get(title, "").strip()
    others = ", ".join(value for name, value in attributes.items() if name != title)
    if own and others:
        return (f"{own}, {others}", own, others)
    return tuple(text for text in (own, others) if text)


def of_dataset(dataset: Dataset, split: str, title: str) -> dict[str, tuple[str, ...]]:
    """Return the texts of each image of a split's galleries that has any."""
    wanted = set(dataset.images_of(split))
    found = {
        row["image_id"]: texts(dict(row["attributes"]), title)
        for row in dataset.images.select(["image_id", "attributes"]).to_pylist()
        if row["image_id"] in wanted
    }
    return {image_id: own for image_id, own in found.items() if own}
