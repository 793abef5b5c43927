"""Encoders of sentence-transformers that compose image and text by themselves.

Qwen3-VL-Embedding, BGE-VL and GME are such models: their query is one feature of an image and a
text together. `encoder.name sentence_transformers` loads one from `encoder.pretrained`, a folder or
a model of the Hugging Face hub, and `stage2.head joint` asks it. It is not trained.

The model's folder is kept as it is. Pictures reach the model as `preprocess` makes them, whole in a
square, and texts as UTF-8 bytes, of which the model's own tokenizer makes its tokens.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from raycd import extras
from raycd.config import EncoderConfig
from raycd.data.preprocess import Preprocess
from raycd.durable import sha256
from raycd.errors import ConfigError, WeightsError, brief
from raycd.model.plugins import Parts

MODEL = "model"  # the model's own folder, in that of a saved encoder
SIDE = 448  # of the pictures that the model is given
MOST_BYTES = 2048  # of a text


class Utf8:
    """Texts -> their UTF-8 bytes (B, MOST_BYTES) int64, padded with zeros."""

    padding = 0

    def __init__(self, tokenizer: Any, most: int | None) -> None:
        self.files: dict[str, bytes] = {}
        self._tokenizer, self._most = tokenizer, most

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the bytes; longer texts are cut."""
        rows = np.zeros((len(texts), MOST_BYTES), np.int64)
        for row, text in zip(rows, texts, strict=True):
            data = np.frombuffer(text.encode("utf-8", "replace")[:MOST_BYTES], np.uint8)
            row[: len(data)] = data
        return torch.from_numpy(rows)

    def truncates(self, text: str) -> bool:
        """Return whether the bytes are too many, or the tokens that the model makes of them."""
        if len(text.encode("utf-8", "replace")) > MOST_BYTES:
            return True
        if self._most is None or not callable(self._tokenizer):
            return False
        return len(self._tokenizer(text, verbose=False)["input_ids"]) > self._most

    @staticmethod
    def texts(tokens_BL: torch.Tensor) -> list[str]:
        """Return the texts of bytes (B, L)."""
        rows = tokens_BL.cpu().numpy().astype(np.uint8)
        return [row.tobytes().rstrip(b"\0").decode("utf-8", "ignore") for row in rows]


class Composer(nn.Module):
    """A model of sentence-transformers in the form of `plugins.Parts.clip`, with `compose`.

    Its weights are in its own folder: it has none to save beside it.
    """

    def __init__(self, model: Any, folder: Path) -> None:
        super().__init__()
        self.model, self.visual, self.folder = model, nn.Identity(), str(folder)
        self.requires_grad_(False)

    def encode_image(self, images_B3HW: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Return features (B, D) of images (B, 3, H, W) from 0 to 1."""
        return self._encoded(self.model.encode_document, _pictures(images_B3HW), normalize)

    def encode_text(self, tokens_BL: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """Return features (B, D) of texts as bytes (B, L)."""
        return self._encoded(self.model.encode_query, Utf8.texts(tokens_BL), normalize)

    def compose(self, images_B3HW: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
        """Return features (B, D) of images (B, 3, H, W) and texts (B, L) together."""
        pairs = zip(_pictures(images_B3HW), Utf8.texts(tokens_BL), strict=True)
        inputs = [{"image": picture, "text": text} for picture, text in pairs]
        return self._encoded(self.model.encode_query, inputs, False)

    def _encoded(self, encode: Any, inputs: list[Any], normalize: bool) -> torch.Tensor:
        features: torch.Tensor = encode(
            inputs,
            batch_size=len(inputs),
            convert_to_tensor=True,
            normalize_embeddings=normalize,
            show_progress_bar=False,
        )
        return features

    def save_files(self, folder: Path) -> None:
        """Copy the model's folder."""
        shutil.copytree(
            self.folder, folder / MODEL, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*")
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch's has overloads
        """Return nothing, see the class."""
        return {}

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Do nothing, see the class."""


def load(config: EncoderConfig) -> Parts:
    """Load the model from the folder, or the model of the hub, that `config.pretrained` names.

    Raises ConfigError where TargetPad is asked for, WeightsError where there is no such model.
    """
    if config.padding is not None:
        raise ConfigError(
            "an encoder that composes by itself is given whole pictures, without TargetPad",
            got=f"encoder.preprocess target_pad, encoder.target_pad {config.padding:g}",
            expected="encoder.preprocess auto",
            do="set encoder.preprocess auto; presets may have set the other",
        )
    folder = Path(config.pretrained).expanduser()
    if not folder.is_dir():
        folder = Path(_downloaded(config.pretrained))
    parts = _parts(folder, {})
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            digest.update(f"{inside.as_posix()} {sha256(file.resolve())}\n".encode())
    found = {"embed_dim": int(_dim(parts)), "sha256": digest.hexdigest()}
    return Parts(parts.clip, parts.tokenizer, parts.preprocess, found)


def build(model_config: Mapping[str, Any], files: Mapping[str, bytes], folder: Path) -> Parts:
    """Load the model from the folder of a saved encoder."""
    return _parts(folder / MODEL, model_config)


def _parts(folder: Path, model_config: Mapping[str, Any]) -> Parts:
    try:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)
    except ImportError as error:
        raise WeightsError(
            "encoders of sentence-transformers need packages that are not installed",
            got=f"{type(error).__name__}: {error}",
            do=extras.install("sentence_transformers"),
        ) from error
    except Exception as error:  # whatever the model's own code raises
        raise WeightsError(
            f"{folder} holds no model of sentence-transformers that can be loaded",
            got=brief(error),
            expected="a folder with modules.json, whose code is in sentence-transformers itself",
        ) from error
    if not model.supports(("image", "text")):
        raise WeightsError(
            f"the model {folder} does not compose image and text",
            got=f"modalities {model.modalities}",
            expected="image and text together",
            do="take a multimodal embedding model, such as Qwen3-VL-Embedding",
        )
    tokenizer = getattr(model[0], "tokenizer", None)
    whole = Preprocess((SIDE, SIDE), (0.0,) * 3, (1.0,) * 3, resize_mode="longest", fill_color=255)
    words = Utf8(tokenizer, model.max_seq_length)
    return Parts(Composer(model, folder), words, whole, dict(model_config))


def _dim(parts: Parts) -> int:
    """Return D as the model says it, or as it answers."""
    composer: Any = parts.clip
    known = composer.model.get_embedding_dimension()
    return int(known or composer.encode_text(parts.tokenizer(["a"])).shape[1])


def _downloaded(name: str) -> str:
    try:
        from huggingface_hub import snapshot_download

        return str(snapshot_download(name))
    except Exception as error:  # the hub's clients raise anything
        raise WeightsError(
            f"the model {name!r} of sentence-transformers cannot be read",
            got=brief(error),
            expected="a folder, or a model of the Hugging Face hub",
            do="set encoder.pretrained; where there is no network, to a folder",
        ) from error


def _pictures(images_B3HW: torch.Tensor) -> list[Image.Image]:
    pixels = images_B3HW.float().mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]
