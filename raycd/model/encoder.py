"""CLIP through open_clip: load, freeze, encode, save.

Features are NOT normalised: the paper sums them first (eq. 3). A saved encoder is a folder in
open_clip's own form (`local-dir:`), tokenizer included, plus raycd's preprocessing.

open_clip is imported where a model is made or looked into, here and in its neighbours: it brings
timm, torchvision and transformers, which take seconds, and processes that train heads need none.

Shapes: B batch, D feature size, H and W height and width of the pixels, L context length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from raycd import progress
from raycd.config import EncoderConfig
from raycd.data.preprocess import Preprocess
from raycd.errors import RaycdError, WeightsError, brief
from raycd.model import architecture, plugins, tokenizer
from raycd.model.architecture import TEXT_TOWER
from raycd.model.plugins import TextTokenizer
from raycd.model.precision import Arithmetic
from raycd.model.short_texts import encode_text
from raycd.model.weights import save_weights

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
PREPROCESS = "preprocess.json"
LOCAL_DIR, HUB = "local-dir:", "hf-hub:"  # open_clip's own prefixes of a model's name

# Learnt, but no part of a feature: the scale of the logits, and CoCa's writer of captions
NOT_OF_FEATURES = ("logit_scale", "logit_bias", "text_decoder.")

Finetune = Literal["text", "image", "both", "none"]


class Encoder(nn.Module):
    """An image encoder and a text encoder that share a feature space of `dim` dimensions."""

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: TextTokenizer,
        preprocess: Preprocess,
        model_config: dict[str, Any],
    ) -> None:
        from open_clip.timm_model import TimmModel

        super().__init__()
        self.clip: Any = clip  # open_clip's models have no types
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.model_config = model_config
        self.precision: Arithmetic = "fp32"
        self.images_in_bf16 = False  # casting.py: where images need no autocast
        # Convolutions are several times as fast on CPUs, and faster on GPUs, with channels last;
        # but the backward pass of timm's FastViT then crashes on CPUs (torch 2.15), and weights of
        # Conv3d have no such order
        visual: Any = self.clip.visual
        of_videos = any(own.dim() == 5 for own in (*visual.parameters(), *visual.buffers()))
        as_it_is = of_videos or isinstance(visual, TimmModel)
        self.memory_format = torch.contiguous_format if as_it_is else torch.channels_last
        visual.to(memory_format=self.memory_format)

    @property
    def dim(self) -> int:
        """Return D, the size of a feature."""
        return int(self.model_config["embed_dim"])

    @property
    def logit_scale(self) -> float:
        """Return the factor of the cosines that it was trained with; 100 if there is none."""
        log_scale = getattr(self.clip, "logit_scale", None)
        return 100.0 if log_scale is None else float(log_scale.exp())

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        device: torch.device = next(self.clip.parameters()).device
        return device

    def encode_images(self, pixels_BHW3: torch.Tensor) -> torch.Tensor:
        """Return features (B, D) float32, not normalised (eq. 8), of uint8 pixels (B, H, W, 3)."""
        pixels = self.preprocess.normalise(pixels_BHW3.to(self.device, non_blocking=True))
        if self.images_in_bf16:
            pixels = pixels.bfloat16()
        pixels = pixels.contiguous(memory_format=self.memory_format)
        with nullcontext() if self.images_in_bf16 else self._arithmetic():
            features: torch.Tensor = self.clip.encode_image(pixels, normalize=False).float()
        return features

    def encode_tokens(self, tokens: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
        """Return features (B, D) float32, not normalised (eq. 2), of tokens (B, L).

        `whole`: whatever reads states inside finds those of padding, too (short_texts.py).
        """
        tokens = tokens.to(self.device, non_blocking=True)
        with self._arithmetic():
            return encode_text(self.clip, tokens, whole=whole).float()

    @property
    def composes(self) -> bool:
        """Return whether the encoder has `compose`: it needs no fusion head."""
        return hasattr(self.clip, "compose")

    def compose(self, pixels_BHW3: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return features (B, D) float32 of pixels (B, H, W, 3) and tokens (B, L) together."""
        pixels = self.preprocess.normalise(pixels_BHW3.to(self.device, non_blocking=True))
        with self._arithmetic():
            features: torch.Tensor = self.clip.compose(pixels, tokens).float()
        return features

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Return tokens (B, L) int64 of texts; longer texts are cut to the context length."""
        return self.tokenizer(texts)

    def truncates(self, text: str) -> bool:
        """Return whether `tokenize` cuts this text."""
        return self.tokenizer.truncates(text)

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def trainable(self, finetune: Finetune, *, grad_checkpointing: bool = False) -> None:
        """Choose which encoders train; batch norms stay in eval mode, with frozen statistics."""
        self.eval()
        for name, parameter in self.clip.named_parameters():
            image = name.startswith("visual.")
            wanted = finetune == "both" or finetune == ("image" if image else "text")
            parameter.requires_grad_(wanted and not name.startswith(NOT_OF_FEATURES))
        if grad_checkpointing:
            self.clip.set_grad_checkpointing(True)
            architecture.recompute_blocks(self.clip.visual)

    def save(self, folder: Path) -> None:
        """Write what `load_saved` reads into `folder` (created)."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.clip, folder / WEIGHTS)
        described = {"model_cfg": self.model_config, "preprocess_cfg": self.preprocess.open_clip()}
        _write_json(folder / CONFIG, described)
        _write_json(folder / PREPROCESS, self.preprocess.to_dict())
        for name, content in self.tokenizer.files.items():
            (folder / name).write_bytes(content)
        if hasattr(self.clip, "save_files"):
            self.clip.save_files(folder)
        if "hf_model_name" in self.model_config.get("text_cfg", {}):
            self.clip.text.config.save_pretrained(folder / TEXT_TOWER)

    def fingerprint(self) -> str:
        """Return a hash of weights, model configuration, preprocessing and tokenizer.

        Features of encoders with equal fingerprints may be compared.
        """
        digest = hashlib.sha256()
        settings = {"model": self.model_config, "preprocess": self.preprocess.to_dict()}
        if self.tokenizer.files:
            settings["tokenizer"] = {
                name: hashlib.sha256(content).hexdigest()
                for name, content in self.tokenizer.files.items()
            }
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name, value in sorted(self.clip.state_dict().items()):
            digest.update(name.encode())
            digest.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()


def create(config: EncoderConfig) -> Encoder:
    """Build an encoder with random weights, of the architecture that `config.name` names."""
    model_config, clip = architecture.named(config)
    return _encoder(clip, model_config, config, architecture.described_by_tags(config.name))


def brings_weights(name: str) -> bool:
    """Tell whether a name says which weights, too, so that `encoder.pretrained` is not asked."""
    return name in plugins.names() or name.startswith((LOCAL_DIR, HUB))


def load(config: EncoderConfig) -> Encoder:
    """Load the encoder that `config` names, with its weights.

    `config.pretrained` is a folder in open_clip's form, a path to safetensors weights or a tag of
    open_clip (downloaded). Where the name itself is a folder (local-dir:) or a model of the Hugging
    Face hub (hf-hub:), it is ignored; an encoder of another package (plugins.py) reads it as it
    likes. Raises WeightsError where the weights cannot be read or do not fit the architecture.
    """
    if config.name in plugins.names():
        return _of(plugins.load(config))
    if config.name.startswith(LOCAL_DIR):
        return _in_folder(Path(config.name.removeprefix(LOCAL_DIR)).expanduser(), config)
    if config.name.startswith(HUB):
        return _pretrained(config.model_copy(update={"pretrained": ""}))
    if not config.pretrained:
        raise WeightsError(
            "encoder.pretrained is empty",
            expected="a tag of open_clip, a folder or a .safetensors file",
        )
    source = Path(config.pretrained).expanduser()
    if source.is_dir():
        return _in_folder(source, config)
    if source.suffix == ".safetensors" or source.is_file():
        model_config, clip = architecture.named(config)
        architecture.fill(clip, source)
        return _encoder(clip, model_config, config, architecture.described_by_tags(config.name))
    return _pretrained(config)


def _in_folder(folder: Path, config: EncoderConfig) -> Encoder:
    """Load a folder, and say which settings it does not follow."""
    loaded = load_saved(folder, config)
    if config.configs:
        progress.say(
            f"warning: the encoder in {folder} has a configuration of its own: "
            "encoder.configs changes nothing"
        )
    warn_of_padding(loaded, config, folder)
    return loaded


def warn_of_padding(loaded: Encoder, config: EncoderConfig, folder: Path) -> None:
    """Say where an encoder of a folder does not follow `encoder.preprocess target_pad`."""
    if config.padding is not None and loaded.preprocess.target_pad != config.padding:
        progress.say(
            f"warning: the encoder in {folder} keeps the preprocessing that it was saved with: "
            f"encoder.preprocess target_pad by {config.padding:g} changes nothing"
        )


def _pretrained(config: EncoderConfig) -> Encoder:
    """Load a tag's weights, or a model of the hub, by open_clip's own factory.

    What raycd saved and somebody put on the hub is a folder as others are.
    """
    import open_clip

    try:
        of_hub = config.name.startswith(HUB)
        if of_hub and (folder := _saved_on_hub(config.name.removeprefix(HUB))):
            return _in_folder(folder, config)
        model_config = architecture.model_config(config)
        clip = open_clip.create_model(
            config.name, pretrained=config.pretrained or None, require_pretrained=True
        )
    except RaycdError:
        raise
    except Exception as error:  # the hub's clients raise anything
        if of_hub:
            raise WeightsError(
                f"the encoder {config.name} cannot be loaded",
                got=brief(error),
                expected="a model of the Hugging Face hub in open_clip's form",
                do="check its name; where there is no network, set HF_HUB_OFFLINE=1 if it was "
                f"downloaded before, or encoder.name {LOCAL_DIR}FOLDER to a copy of its files",
            ) from error
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        raise WeightsError(
            f"the weights {config.pretrained!r} of {config.name} cannot be loaded",
            got=brief(error),
            expected=f"a tag of this model ({', '.join(tags) or 'it has none'}) "
            "or a path to safetensors weights",
            do="set encoder.pretrained; where there is no network, to a file",
        ) from error
    return _encoder(clip, model_config, config, open_clip.get_model_preprocess_cfg(clip))


def _saved_on_hub(name: str) -> Path | None:
    """Download a model of the hub that raycd saved, of which open_clip does not read all."""
    import huggingface_hub as hub

    try:
        hub.hf_hub_download(name, PREPROCESS)
    except hub.errors.EntryNotFoundError as error:
        # A hub that does not answer says nothing of the file, but where it did or may not be asked
        absent = hub.try_to_load_from_cache(name, PREPROCESS) is hub._CACHED_NO_EXIST
        known = absent or hub.constants.HF_HUB_OFFLINE
        if isinstance(error, hub.errors.LocalEntryNotFoundError) and not known:
            raise
        return None
    return Path(hub.snapshot_download(name, ignore_patterns="README.md"))


def load_saved(
    folder: Path, config: EncoderConfig | None = None, *, names: Sequence[str] | None = None
) -> Encoder:
    """Load an encoder from a folder in open_clip's form.

    Args:
        folder: As `Encoder.save` writes it, with the preprocessing that it was saved with; or as
            open_clip's own saving or a model of the Hugging Face hub has it.
        config: Chooses the preprocessing of a folder that is not raycd's.
        names: The tokenizer's files are among these; None: any may be.

    Raises:
        WeightsError: It holds no encoder, or is damaged.
    """
    try:
        described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model_config = described["model_cfg"]
        preprocess, files = None, dict[str, bytes]()
        # Earlier versions left open_clip's description empty
        if described.get("preprocess_cfg") == {} or (folder / PREPROCESS).exists():
            preprocess = Preprocess.from_dict(
                json.loads((folder / PREPROCESS).read_text(encoding="utf-8"))
            )
            files = tokenizer.files_of(folder, names, (WEIGHTS, CONFIG, PREPROCESS))
        parts = plugins.build(model_config, files, folder) if plugins.KIND in model_config else None
        clip = parts.clip if parts else architecture.build(model_config, folder)
        known = dict(described.get("preprocess_cfg") or {})
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        *(RuntimeError, AssertionError),  # open_clip asserts, torch raises RuntimeError
    ) as error:
        raise WeightsError(
            f"{folder} holds no encoder",
            got=f"{type(error).__name__}: {error}",
            expected=f"{CONFIG} and {WEIGHTS}, in open_clip's form",
            do=f"where its preprocess_cfg is empty, leave that out, or add {PREPROCESS}"
            if isinstance(error, FileNotFoundError) and PREPROCESS in str(error)
            else None,
        ) from error
    # Of several files of weights in a folder of raycd's, one alone is what was verified
    own = folder / WEIGHTS
    architecture.fill(clip, architecture.weights_beside(own) if preprocess is None else own)
    if parts is not None:
        return _of(parts if preprocess is None else replace(parts, preprocess=preprocess))
    if preprocess is None:
        return _encoder(clip, model_config, config or EncoderConfig(), known, folder)
    words = tokenizer.create(model_config, files=files)
    return Encoder(clip, words, preprocess, model_config).eval()


def saved_model_config(folder: Path) -> dict[str, Any]:
    """Return open_clip's configuration of an encoder that `Encoder.save` wrote."""
    described: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return dict(described["model_cfg"])


def _of(parts: plugins.Parts) -> Encoder:
    return Encoder(parts.clip, parts.tokenizer, parts.preprocess, parts.model_config).eval()


def _encoder(
    clip: nn.Module,
    model_config: dict[str, Any],
    config: EncoderConfig,
    described: Mapping[str, Any],
    folder: Path | None = None,
) -> Encoder:
    """Return an encoder whose tokenizer is in `folder` or downloaded."""
    preprocess = architecture.preprocess_of(clip, described)
    padding = described.get("target_pad", config.padding)
    if padding is not None:
        preprocess = preprocess.with_target_pad(padding)
    words = tokenizer.create(model_config, folder=folder)
    return Encoder(clip, words, preprocess, model_config).eval()


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
