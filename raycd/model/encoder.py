"""CLIP through open_clip: load, freeze, encode, save.

Features are NOT normalised: the paper sums them first (eq. 3). A saved encoder is a folder in
open_clip's own form (`local-dir:`), plus raycd's preprocessing.

Shapes: B batch, D feature size, S image side, L context length.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.modified_resnet import Bottleneck
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from raycd.config import EncoderConfig, Precision
from raycd.data.preprocess import Preprocess
from raycd.errors import WeightsError
from raycd.model.finite import check_weights

LOCAL_CONFIGS = Path(__file__).parent / "configs"
WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
PREPROCESS = "preprocess.json"

_KEPT_WORDS = 100_000  # whose tokens a tokenizer remembers

Finetune = Literal["text", "image", "both", "none"]


class Encoder(nn.Module):
    """An image encoder and a text encoder that share a feature space of `dim` dimensions."""

    def __init__(
        self, clip: nn.Module, tokenizer: Any, preprocess: Preprocess, model_config: dict[str, Any]
    ) -> None:
        super().__init__()
        self.clip: Any = clip  # open_clip's models have no types
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.model_config = model_config
        self.precision: Precision = "fp32"
        self._specials = dict(getattr(tokenizer, "cache", {}))
        # Convolutions are several times as fast on CPUs, and faster on GPUs, with channels last
        self.clip.visual.to(memory_format=torch.channels_last)

    @property
    def dim(self) -> int:
        """Return D, the size of a feature."""
        return int(self.model_config["embed_dim"])

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        device: torch.device = next(self.clip.parameters()).device
        return device

    def encode_images(self, pixels_BSS3: torch.Tensor) -> torch.Tensor:
        """Return features (B, D) float32, not normalised (eq. 8), of uint8 pixels (B, S, S, 3)."""
        pixels = self.preprocess.normalise(pixels_BSS3.to(self.device, non_blocking=True))
        with self._arithmetic():
            features: torch.Tensor = self.clip.encode_image(pixels).float()
        return features

    def encode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return features (B, D) float32, not normalised (eq. 2), of tokens (B, L)."""
        with self._arithmetic():
            features: torch.Tensor = self.clip.encode_text(
                tokens.to(self.device, non_blocking=True)
            ).float()
        return features

    def tokenize(self, texts: Sequence[str]) -> torch.Tensor:
        """Return tokens (B, L) int64 of texts; longer texts are cut to the context length."""
        # The cache of open_clip's tokenizer grows without bounds
        if len(getattr(self.tokenizer, "cache", ())) > _KEPT_WORDS:
            self.tokenizer.cache = dict(self._specials)
        tokens: torch.Tensor = self.tokenizer(list(texts))
        return tokens

    def truncates(self, text: str) -> bool:
        """Return whether `tokenize` cuts this text."""
        return len(self.tokenizer.encode(text)) + 2 > int(self.tokenizer.context_length)

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
            parameter.requires_grad_(wanted and name not in ("logit_scale", "logit_bias"))
        if grad_checkpointing:
            self.clip.set_grad_checkpointing(True)
            _recompute_blocks(self.clip.visual)

    def save(self, folder: Path) -> None:
        """Write weights, model configuration and preprocessing into `folder` (created)."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            name: value.detach().cpu().contiguous()
            for name, value in self.clip.state_dict().items()
        }
        save_file(weights, folder / WEIGHTS)
        _write_json(folder / CONFIG, {"model_cfg": self.model_config, "preprocess_cfg": {}})
        _write_json(folder / PREPROCESS, self.preprocess.to_dict())

    def fingerprint(self) -> str:
        """Return a hash of weights, model configuration and preprocessing.

        Features of encoders with equal fingerprints may be compared.
        """
        digest = hashlib.sha256()
        settings = {"model": self.model_config, "preprocess": self.preprocess.to_dict()}
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name, value in sorted(self.clip.state_dict().items()):
            digest.update(name.encode())
            digest.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return digest.hexdigest()


def create(config: EncoderConfig) -> Encoder:
    """Build an encoder with random weights, of the architecture that `config.name` names."""
    model_config = _model_config(config)
    return _with_preprocess(_build(model_config), model_config, config.target_pad)


def load(config: EncoderConfig) -> Encoder:
    """Load the encoder that `config` names, with its weights.

    `config.pretrained` is a folder written by `Encoder.save`, a path to safetensors weights or a
    tag of open_clip (downloaded). Raises WeightsError where the weights cannot be read or do not
    fit the architecture.
    """
    if not config.pretrained:
        raise WeightsError(
            "encoder.pretrained is empty",
            expected="a tag of open_clip, a folder or a .safetensors file",
        )
    source = Path(config.pretrained).expanduser()
    if source.is_dir():
        return load_saved(source)
    model_config = _model_config(config)
    if source.suffix == ".safetensors" or source.is_file():
        clip = _build(model_config)
        _fill(clip, source)
        return _with_preprocess(clip, model_config, config.target_pad)
    try:
        clip = open_clip.create_model(
            config.name, pretrained=config.pretrained, require_pretrained=True
        )
    except (RuntimeError, OSError, ValueError) as error:
        tags = open_clip.list_pretrained_tags_by_model(config.name)
        raise WeightsError(
            f"the weights {config.pretrained!r} of {config.name} cannot be loaded",
            got=" ".join(str(error).split())[:300] or type(error).__name__,
            expected=f"a tag of this model ({', '.join(tags) or 'it has none'}) "
            "or a path to safetensors weights",
            do="set encoder.pretrained; where there is no network, to a file",
        ) from error
    return _with_preprocess(clip, model_config, config.target_pad)


def load_saved(folder: Path) -> Encoder:
    """Load the encoder that `Encoder.save` wrote into `folder`. Raises WeightsError."""
    try:
        model_config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        preprocess = Preprocess.from_dict(
            json.loads((folder / PREPROCESS).read_text(encoding="utf-8"))
        )
        clip = _build(model_config)
    except (
        *(OSError, ValueError, KeyError, TypeError, AttributeError),
        *(RuntimeError, AssertionError),  # open_clip asserts, torch raises RuntimeError
    ) as error:
        raise WeightsError(
            f"{folder} holds no encoder",
            got=f"{type(error).__name__}: {error}",
            expected=f"{CONFIG}, {PREPROCESS} and {WEIGHTS}, as Encoder.save writes them",
        ) from error
    _fill(clip, folder / WEIGHTS)
    return Encoder(clip, _tokenizer(model_config), preprocess, model_config).eval()


def fold_batch_norms(module: nn.Module) -> None:
    """Fold batch norms into the convolutions before them: the same function in fewer steps.

    `module` is in eval mode and will only answer. Folded are convN and bnN of one module, as CLIP's
    ResNets name them, and a convolution right before a batch norm in a Sequential. A folded batch
    norm becomes the identity.
    """
    children = dict(module.named_children())
    names = list(children)
    pairs = [(name, name.replace("conv", "bn")) for name in names if name.startswith("conv")]
    if isinstance(module, nn.Sequential):
        pairs += list(pairwise(names))
    for convolution, norm in pairs:
        conv, bn = children.get(convolution), children.get(norm)
        if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
            setattr(module, convolution, fuse_conv_bn_eval(conv, bn))
            setattr(module, norm, nn.Identity())
    for child in children.values():
        fold_batch_norms(child)


def _recompute_blocks(visual: nn.Module) -> None:
    """Let every residual block of a ModifiedResNet recompute its activations in the backward pass.

    open_clip offers gradient checkpointing for transformers only. Batch norms must be in eval mode,
    or they would count each batch twice. Other image encoders stay as they are.
    """
    for block in visual.modules():
        if isinstance(block, Bottleneck):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def _model_config(config: EncoderConfig) -> dict[str, Any]:
    """Return open_clip's model configuration by name; raycd's and the user's folder count too."""
    open_clip.add_model_config(LOCAL_CONFIGS)
    if config.configs:
        if not Path(config.configs).expanduser().is_dir():
            raise WeightsError(
                "encoder.configs is not a folder",
                got=config.configs,
                expected="a folder of JSON files",
            )
        open_clip.add_model_config(Path(config.configs).expanduser())
    found = open_clip.get_model_config(config.name)
    if found is None:
        near = difflib.get_close_matches(config.name, open_clip.list_models(), n=3, cutoff=0.3)
        raise WeightsError(
            "encoder.name names no model",
            got=config.name,
            expected=f"an open_clip model, such as {', '.join(near)}",
        )
    return dict(found)


def _build(model_config: dict[str, Any]) -> nn.Module:
    """Build the architecture with random weights by open_clip's own factory."""
    settings = json.loads(json.dumps(model_config))  # the factory pops from what it is given
    custom = settings.pop("custom_text", False) or "hf_model_name" in settings["text_cfg"]
    if "multimodal_cfg" in settings:
        raise WeightsError("CoCa models are not supported", expected="a CLIP model")
    settings["text_cfg"].pop("hf_model_pretrained", None)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # open_clip warns of random weights, which are replaced next
    try:
        clip: nn.Module = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings)
    finally:
        root.setLevel(level)
    return clip


def _fill(clip: nn.Module, weights: Path) -> None:
    if weights.suffix != ".safetensors":
        raise WeightsError(
            f"{weights} is not a safetensors file",
            expected="a path that ends in .safetensors; raycd reads no pickle",
            do="convert it: safetensors.torch.save_file(state_dict, path)",
        )
    try:
        clip.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise WeightsError(
            f"the weights {weights} cannot be read or do not fit the model",
            got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            do="check the file, and that encoder.name is the architecture that it was saved from",
        ) from error
    check_weights(
        clip, f"the encoder {weights}", do="take another file, or run the stage again that wrote it"
    )


def _with_preprocess(clip: nn.Module, model_config: dict[str, Any], target_pad: float) -> Encoder:
    settings = open_clip.get_model_preprocess_cfg(clip)
    size = settings["size"]
    side = int(size[0] if isinstance(size, (tuple, list)) else size)
    # Mean and deviation are absent where open_clip's factory did not build the model
    mean = settings.get("mean", open_clip.OPENAI_DATASET_MEAN)
    std = settings.get("std", open_clip.OPENAI_DATASET_STD)
    preprocess = Preprocess(side, target_pad, tuple(mean), tuple(std))
    return Encoder(clip, _tokenizer(model_config), preprocess, model_config).eval()


def _tokenizer(model_config: dict[str, Any]) -> Any:
    text = model_config["text_cfg"]
    if "hf_tokenizer_name" in text:
        return open_clip.HFTokenizer(
            text["hf_tokenizer_name"],
            context_length=text.get("context_length", 77),
            **text.get("tokenizer_kwargs", {}),
        )
    return open_clip.SimpleTokenizer(context_length=text.get("context_length", 77))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
