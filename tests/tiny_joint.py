"""A tiny model of sentence-transformers that composes image and text, of random weights.

sentence-transformers imports no code that a model's folder names unless it is its own, so the
module has a name among them while a test runs; `pretend` gives it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.input_module import InputModule

PRETENDED = "sentence_transformers.tiny_joint"


class TinyJoint(InputModule):
    """Mean colours and counts of letters, mixed by one random matrix each and by a third."""

    config_keys = ["dim"]  # noqa: RUF012

    def __init__(self, dim: int = 12) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.dim = dim
        self.image, self.text = torch.nn.Linear(48, dim), torch.nn.Linear(64, dim)
        self.both = torch.nn.Linear(2 * dim, dim)

    @property
    def modalities(self) -> list[Any]:
        return ["text", "image", ("image", "text")]

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        rows = [one if isinstance(one, dict) else {_kind(one): one} for one in inputs]
        has = torch.tensor([["image" in row, "text" in row] for row in rows])
        colours = torch.stack([_colours(row.get("image")) for row in rows])
        letters = torch.stack([_letters(row.get("text", "")) for row in rows])
        return {"colours": colours, "letters": letters, "has": has}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        image, text = self.image(features["colours"]), self.text(features["letters"])
        has = features["has"]
        joint = self.both(torch.cat([image, text], dim=1)).tanh()
        alone = torch.where(has[:, :1], image, text)
        features["sentence_embedding"] = torch.where(has.all(dim=1, keepdim=True), joint, alone)
        return features

    def get_embedding_dimension(self) -> int:
        return self.dim

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path)

    @classmethod
    def load(  # type: ignore[override]  # fewer options than its parent's
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> TinyJoint:
        made = cls(**cls.load_config(model_name_or_path, subfolder=subfolder))
        cls.load_torch_weights(model_name_or_path, subfolder=subfolder, model=made)
        return made


def _kind(one: object) -> str:
    return "image" if isinstance(one, Image.Image) else "text"


def _colours(image: Image.Image | None) -> torch.Tensor:
    if image is None:
        return torch.zeros(48)
    return torch.tensor(list(image.resize((4, 4)).tobytes())) / 255


def _letters(text: str) -> torch.Tensor:
    return torch.bincount(torch.tensor([ord(c) % 64 for c in text] or [0]), minlength=64).float()


def pretend() -> None:
    """Let sentence-transformers take this module for its own."""
    sys.modules[PRETENDED] = sys.modules[__name__]


def write(folder: Path) -> None:
    """Write a model of random weights, always the same."""
    torch.manual_seed(0)
    SentenceTransformer(modules=[TinyJoint()], device="cpu").save(str(folder))
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = f"{PRETENDED}.TinyJoint"
    (folder / "modules.json").write_text(json.dumps(modules))
