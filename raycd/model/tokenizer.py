"""Tokenizers of open_clip, with one interface: SimpleTokenizer and Hugging Face's.

A Hugging Face tokenizer is a handful of files. They are kept with the encoder, so that a saved one
needs no network, and belong to its fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from raycd import extras, scratch
from raycd.errors import WeightsError

_SETTINGS = "tokenizer_config.json"
_KEPT = 2_000_000  # characters of texts whose words a SimpleTokenizer remembers: 50 MB at most
CONTEXT_LENGTH = 77  # open_clip's, where a model configuration has none


class Tokenizer:
    """Texts -> tokens (B, L) int64, in any thread and, by pickle, in any process.

    Attributes:
        files: Name -> content of a Hugging Face tokenizer's files; empty for SimpleTokenizer.
    """

    def __init__(
        self,
        inner: Any,
        files: Mapping[str, bytes] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.files: dict[str, bytes] = dict(files or {})
        self._inner, self._settings = inner, settings
        self._specials = dict(getattr(inner, "cache", {}))
        self._remembered = 0  # characters
        # A fast tokenizer holds its truncation: changing it while another thread encodes fails
        self._lock = Lock()

    @property
    def context_length(self) -> int:
        """Return L."""
        return int(self._inner.context_length)

    @property
    def padding(self) -> int:
        """Return the token that fills a text up to L."""
        found = getattr(getattr(self._inner, "tokenizer", None), "pad_token_id", None)
        return 0 if found is None else int(found)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return tokens (B, L) int64 of texts; longer texts are cut to the context length."""
        with self._lock:
            self._bound(texts)
            tokens: torch.Tensor = self._inner(list(texts))
        return tokens

    def truncates(self, text: str) -> bool:
        """Return whether a text is cut."""
        with self._lock:
            self._bound([text])
            if not self.files:
                return len(self._inner.encode(text)) + 2 > self.context_length
            # Mode clips adds three special tokens by itself, around what it cuts
            clips = self._inner.tokenizer_mode == "clips"
            whole = self._inner.tokenizer(
                self._inner.clean_fn(text), add_special_tokens=not clips, verbose=False
            )
            return bool(len(whole.input_ids) + 3 * clips > self.context_length)

    def _bound(self, texts: Sequence[str]) -> None:
        """Empty the cache of open_clip's SimpleTokenizer in time: it grows without bounds."""
        self._remembered += sum(map(len, texts))
        if self._remembered > _KEPT and hasattr(self._inner, "cache"):
            self._inner.cache, self._remembered = dict(self._specials), 0

    def __reduce__(self) -> tuple[object, ...]:
        """Cross process borders as files: some tokenizers look for theirs where they were read."""
        return (
            (_restored, (self.files, self._settings)) if self.files else (Tokenizer, (self._inner,))
        )


def context_length(model_config: Mapping[str, Any]) -> int:
    """Return L of a model configuration of open_clip."""
    return int(model_config.get("text_cfg", {}).get("context_length", CONTEXT_LENGTH))


def create(
    model_config: Mapping[str, Any],
    *,
    files: Mapping[str, bytes] | None = None,
    folder: Path | None = None,
) -> Tokenizer:
    """Return the tokenizer of a model configuration of open_clip.

    Args:
        model_config: open_clip's `model_cfg`.
        files: Those of `Tokenizer.files`, of a Hugging Face tokenizer.
        folder: Where these are, among others. Where neither has any, the tokenizer is read from the
            folder that the configuration names, or downloaded.

    Raises:
        WeightsError: transformers is not installed, or the tokenizer cannot be read.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    text = model_config["text_cfg"]
    length = context_length(model_config)
    settings = dict(text.get("tokenizer_kwargs") or {})
    name = text.get("hf_tokenizer_name")
    if not name:
        return Tokenizer(SimpleTokenizer(context_length=length, **settings))
    if folder is not None and (folder / "tokenizer_config.json").exists():
        name = str(folder)
    settings |= {
        "context_length": length,
        "tokenizer_mode": text.get("tokenizer_mode"),
        "trust_remote_code": False,
    }
    try:
        # The files that are kept are also those that are used, now and later
        return _restored(files or _written(HFTokenizer(name, **settings)), settings)
    except ImportError as error:
        raise WeightsError(
            f"the tokenizer {name} needs packages that are not installed",
            got=f"{type(error).__name__}: {_first_line(error)}",
            expected="transformers and sentencepiece",
            do=extras.install("transformers"),
        ) from error
    except Exception as error:  # the tokenizers' own library raises plain Exceptions
        raise WeightsError(
            f"the tokenizer {name} cannot be read",
            got=f"{type(error).__name__}: {_first_line(error)}",
            expected="a folder, or a model of the Hugging Face hub that can be reached",
            do="where there is no network, name a folder with its files: text_cfg, "
            "hf_tokenizer_name of the model configuration, or an encoder that raycd saved",
        ) from error


def files_of(
    folder: Path, names: Sequence[str] | None, not_ours: Sequence[str]
) -> dict[str, bytes]:
    """Return the tokenizer's files in an encoder's folder: all but `not_ours` and hidden ones.

    `names` are those to take, where not all are trusted.
    """
    found = [file for file in sorted(folder.iterdir()) if file.is_file()]
    return {
        file.name: file.read_bytes()
        for file in found
        if file.name not in not_ours
        and not file.name.startswith(".")
        and (names is None or file.name in names)
    }


def _written(tokenizer: Any) -> dict[str, bytes]:
    with scratch.folder() as folder:
        tokenizer.save_pretrained(str(folder))
        found = files_of(folder, None, ())
    if _SETTINGS in found:  # which say where it was read, too: a fingerprint shall not
        settings = json.loads(found[_SETTINGS])
        for name in ("is_local", "local_files_only"):
            settings.pop(name, None)
        found[_SETTINGS] = f"{json.dumps(settings, indent=2, ensure_ascii=False)}\n".encode()
    return found


def _restored(files: Mapping[str, bytes], settings: Mapping[str, Any]) -> Tokenizer:
    from open_clip.tokenizer import HFTokenizer

    with scratch.folder() as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return Tokenizer(HFTokenizer(str(folder), **settings), files, settings)


def _first_line(error: Exception) -> str:
    with suppress(IndexError):
        return str(error).strip().splitlines()[0][:300]
    return ""
