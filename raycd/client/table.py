"""Answers as text for terminals."""

from __future__ import annotations

from collections.abc import Sequence

from raycd.api import GalleryList, GalleryPage, Info, SearchResponse, Written
from raycd.client.errors import printable


def results(found: SearchResponse, *, offset: int) -> str:
    """Return a table of results, and their number of all images."""
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
    """Return a table of a page of the gallery."""
    rows = [(item.image_id, item.category, _pairs(item.attributes)) for item in page.items]
    text = _table(("image_id", "category", "attributes"), rows)
    return f"{text}\n{_range(page.offset, len(rows), page.total)}"


def galleries(found: GalleryList) -> str:
    """Return a table of a service's galleries."""
    rows = [
        (
            one.name,
            f"{one.size:,}",
            "yes" if one.live else "no",
            one.encoder or "",
            one.bundle or f"none: {one.refused}",
        )
        for one in found.galleries
    ]
    return _table(("gallery", "images", "live", "encoder", "bundle"), rows, right=(1,))


def written(change: Written) -> str:
    """Describe what a put has done."""
    what = "added" if change.created else "replaced"
    return printable(f"{what} {change.image_id}, version {change.version:,}")


def deleted(change: Written) -> str:
    """Describe what a delete has done."""
    return printable(f"deleted {change.image_id}, version {change.version:,}")


def info(service: Info) -> str:
    """Describe the service in a few lines."""
    model, index, limits = service.model, service.index, service.limits
    recall = "" if index.recall is None else f", recall {index.recall:.3f}"
    # An attribute may have the name of any of them
    lines = [
        ("service", f"raycd {service.version}"),
        (
            "model",
            f"{model.encoder} ({model.fingerprint}), head {model.head}, preset {model.preset}",
        ),
        ("index", f"{index.kind}, {index.size:,} images, version {index.version}{recall}"),
        (
            "limits",
            f"top_k {limits.top_k}, batch {limits.batch}, "
            f"{limits.text_characters:,} characters, {limits.body_bytes:,} bytes, "
            f"images {' '.join(limits.formats)}",
        ),
        ("categories", _counts(service.categories)),
        *((name, _counts(values)) for name, values in service.attributes.items()),
        ("try", "; ".join(service.example_texts[:3])),
    ]
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{printable(name):<{width}}{printable(text)}" for name, text in lines if text)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{value} {count:,}" for value, count in counts.items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return rows in columns as wide as needed; those at indices `right` are right-aligned."""
    lines = [list(map(printable, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
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
