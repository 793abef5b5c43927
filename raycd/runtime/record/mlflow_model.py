"""A bundle as a model that MLflow itself loads, in any process that has its requirements.

    model = mlflow.pyfunc.load_model("models:/raycd/1")
    model.predict({"image": ["shirt.jpg"], "text": ["is blue"], "top_k": [5]})

`write` makes the files of a model around a bundle: MLmodel, requirements, an example, and the
source of raycd, which MLflow puts on the path of whoever loads it. Nothing of it is pickled.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

import raycd
from raycd import bundle, scratch
from raycd.data import images
from raycd.errors import DataError
from raycd.runtime.record.mlflow_store import BUNDLE
from raycd.search.query import Query
from raycd.search.searcher import Searcher

REQUIREMENTS = (
    *("cachetools", "faiss-cpu", "faiss-gpu", "filelock", "fsspec", "mlflow", "numpy"),
    *("open_clip_torch", "pandas", "pillow", "psutil", "pyarrow", "pydantic", "pydantic-settings"),
    *("PyYAML", "safetensors", "torch", "torchvision"),
    *("sentence-transformers", "sentencepiece", "transformers"),
)
"""What answering needs; those that are installed here are pinned."""


def write(folder: Path) -> None:
    """Write all files of a model but its bundle, which belongs in `folder / BUNDLE`."""
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, Property, Schema

    anything = AnyType()  # type: ignore[no-untyped-call]  # MLflow's
    asked: list[Any] = [
        ColSpec(anything, "image", required=False),
        ColSpec(DataType.string, "image_id", required=False),
        ColSpec(DataType.string, "text", required=False),
        ColSpec(anything, "top_k", required=False),  # a long may not be absent in a single row
    ]
    found = Object([Property("image_id", DataType.string), Property("score", DataType.double)])
    with scratch.folder() as empty:
        (empty / Path(BUNDLE).name).mkdir()
        pyfunc.save_model(
            str(folder),
            loader_module=__name__,
            data_path=str(empty / Path(BUNDLE).name),
            code_paths=[str(Path(raycd.__file__).parent)],
            signature=ModelSignature(
                inputs=Schema(asked), outputs=Schema([ColSpec(Array(found), "results")])
            ),
            input_example={"text": ["is blue"], "top_k": [3]},
            pip_requirements=requirements(),
        )


def requirements() -> list[str]:
    """Return REQUIREMENTS as they are installed here: name==version."""
    pinned = []
    for name in REQUIREMENTS:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        pinned.append(f"{name}=={version.partition('+')[0]}")  # a build's own label is no release
    return pinned


class LoadedModel:
    """What MLflow loads: a searcher of one bundle and its own gallery."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Return a table with a column `results`: for each row [{image_id, score}], best first.

        Args:
            model_input: A pandas table with any of the columns image (bytes, a path, a URL, or a
                file in base64), image_id (of the gallery), text and top_k (10). What is null or
                empty is not given.

        Raises:
            DataError: A row has neither image nor text, or an image that cannot be read.
        """
        import pandas as pd

        enough = self._searcher.enough  # as in training and in the service
        queries = [_query(row, enough) for row in model_input.to_dict(orient="records")]
        found = self._searcher.search(queries)
        rows = [[{"image_id": r.image_id, "score": r.score} for r in own] for own in found]
        return pd.DataFrame({"results": rows})


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> LoadedModel:
    """Load the model for MLflow; `model_config` may have `device` and `threads`."""
    config = dict(model_config or {})
    return LoadedModel(
        Searcher(
            bundle.load(Path(path)),
            device=config.get("device", "cpu"),
            threads=int(config.get("threads", 0)),
        )
    )


def _query(row: Mapping[str, Any], enough: int) -> Query:
    given = {name: value for name, value in row.items() if not _is_absent(value)}
    image = given.get("image")
    return Query(
        image=None if image is None else read(image, enough),
        image_id=given.get("image_id"),
        text=given.get("text", ""),
        top_k=_whole(given.get("top_k", Query.top_k)),
    )


def _whole(top_k: Any) -> int:
    # pandas makes floats of a column's whole numbers where one row has none
    if isinstance(top_k, (int, float)) and float(top_k).is_integer():
        return int(top_k)
    raise DataError("top_k is not a whole number", got=repr(top_k), expected="1 or more")


def _is_absent(value: Any) -> bool:
    if isinstance(value, (str, bytes)):
        return not value
    import pandas as pd

    return bool(pd.api.types.is_scalar(value) and pd.isna(value))  # None, NaN or NA


def read(image: object, enough: int = 0) -> Image.Image:
    """Return an image that is given as bytes, as a path or URL, or as a file in base64.

    `enough` is as in `images.decode`.

    Raises DataError where it is none of these, or cannot be decoded.
    """
    if isinstance(image, bytes):
        return images.decode(image, enough=enough)
    if not isinstance(image, str):
        raise _no_image(type(image).__name__)
    head, is_data, encoded = image.partition(";base64,")
    if is_data and head.startswith("data:"):
        return images.decode(_decoded(encoded), enough=enough)
    if "://" in image or (len(image) < 4096 and "\0" not in image and os.path.exists(image)):
        return images.load(image, enough=enough)
    return images.decode(_decoded(image), enough=enough)


def _decoded(text: str) -> bytes:
    try:
        # Without the line breaks that MIME and the command base64 make
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _no_image(repr(text[:60])) from error


def _no_image(got: str) -> DataError:
    return DataError(
        "the image is neither a file here nor base64",
        got=got,
        expected="bytes, a path, a URL, or an image file in base64",
    )
