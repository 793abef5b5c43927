"""Answers as a terminal shows them."""

from __future__ import annotations

from collections.abc import Sequence

from raycd.api import GalleryPage, Info, SearchResponse, Written
from raycd.client.errors import printable


def results(found: SearchResponse, *, offset: int) -> str:
    """Ranks, and how many images there are to page through."""
    rows = [
        (
            str(rank),
            result.image_id,
            f"{result.score:.4f}",
            f"{result.relative_score:+.2f}",
            result.category,
            _pairs(result.attributes),
        )
        for rank, result in enumerate(found.results, start=offset + 1)
    ]
    head = ("rank", "image_id", "score", "relative", "category", "attributes")
    return f"{_table(head, rows, right=(0, 2, 3))}\n{_range(offset, len(rows), found.total)}"


def gallery(page: GalleryPage) -> str:
    """A page of the gallery."""
    rows = [(item.image_id, item.category, _pairs(item.attributes)) for item in page.items]
    return f"{_table(('image_id', 'category', 'attributes'), rows)}\n{_range(page.offset, len(rows), page.total)}"


def written(change: Written) -> str:
    """What a put has done."""
    return printable(
        f"{'added' if change.created else 'replaced'} {change.image_id}, version {change.version:,}"
    )


def deleted(change: Written) -> str:
    """What a delete has done."""
    return printable(f"deleted {change.image_id}, version {change.version:,}")


def info(told: Info) -> str:
    """What the service is, in a few lines."""
    model, index, limits = told.model, told.index, told.limits
    lines = {
        "service": f"raycd {told.version}",
        "model": f"{model.encoder} ({model.fingerprint}), head {model.head}, preset {model.preset}",
        "index": f"{index.kind}, {index.size:,} images, version {index.version}, recall {index.recall:.3f}",
        "limits": f"top_k {limits.top_k}, batch {limits.batch}, {limits.text_characters:,} characters, "
        f"{limits.body_bytes:,} bytes, images {' '.join(limits.formats)}",
        "categories": ", ".join(f"{name} {count:,}" for name, count in told.categories.items()),
        **{
            name: ", ".join(f"{value} {n:,}" for value, n in counts.items())
            for name, counts in told.attributes.items()
        },
        "try": "; ".join(told.example_texts[:3]),
    }
    width = max(map(len, lines)) + 2
    return "\n".join(
        f"{printable(name):<{width}}{printable(text)}" for name, text in lines.items() if text
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns as wide as they need to be; those of the places `right` are set flush right."""
    lines = [list(map(printable, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _pairs(attributes: dict[str, str]) -> str:
    return " ".join(f"{name}:{value}" for name, value in attributes.items())


def _range(offset: int, shown: int, total: int) -> str:
    return (
        f"{offset + 1:,} to {offset + shown:,} of {total:,} images"
        if shown
        else f"none of {total:,} images"
    )
