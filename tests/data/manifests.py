"""Small manifests in every format."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from raycd.data import manifest

GALLERY = [
    {"image_id": "001", "path": "img/1.jpg"},
    {"image_id": "002", "path": "s3://bucket/2.jpg"},
]
TRIPLETS = [{"reference": "001", "target": "002", "caption": "is, in short, red"}]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path)
    return path.name


def read(
    root: Path,
    gallery: list[dict[str, Any]],
    triplets: list[dict[str, Any]],
    suffix: str = ".jsonl",
) -> Any:
    return manifest.read(
        str(root), write(root / f"t{suffix}", triplets), write(root / f"g{suffix}", gallery)
    )
