"""The architectures of open_clip: found by name, built, filled with weights, described."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from raycd import progress
from raycd.config import EncoderConfig
from raycd.data.preprocess import Preprocess
from raycd.errors import WeightsError, brief
from raycd.model import plugins
from raycd.model.weights import check_weights

LOCAL_CONFIGS = Path(__file__).parent / "configs"
TEXT_TOWER = "text_tower"  # folder of the configuration of a Hugging Face text encoder


def model_config(config: EncoderConfig) -> dict[str, Any]:
    """Return open_clip's model configuration by name; raycd's and the user's folder count too.

    Raises WeightsError where no model has this name.
    """
    import open_clip

    open_clip.add_model_config(LOCAL_CONFIGS)
    if config.configs:
        if not Path(config.configs).expanduser().is_dir():
            raise WeightsError(
                "encoder.configs is not a folder",
                got=config.configs,
                expected="a folder of JSON files",
            )
        try:
            open_clip.add_model_config(Path(config.configs).expanduser())
        except (OSError, ValueError) as error:
            raise WeightsError(
                "a file of encoder.configs cannot be read",
                got=f"{brief(error)} in {config.configs}",
                expected="JSON files, each a model_cfg of open_clip",
            ) from error
    found = open_clip.get_model_config(config.name)
    if found is None:
        known = [*open_clip.list_models(), *plugins.names()]
        near = difflib.get_close_matches(config.name, known, n=3, cutoff=0.3)
        raise WeightsError(
            "encoder.name names no model",
            got=config.name,
            expected=f"an open_clip model, such as {', '.join(near)}",
        )
    return dict(found)


def named(config: EncoderConfig) -> tuple[dict[str, Any], nn.Module]:
    """Return `model_config` and its architecture with random weights. Raises WeightsError."""
    found = model_config(config)
    try:
        return found, build(found)
    except Exception as error:  # open_clip, timm and the hub's clients raise anything
        raise WeightsError(
            f"the encoder {config.name} cannot be built",
            got=brief(error),
            expected="a model_cfg that open_clip knows, and for a text encoder of Hugging Face its "
            "configuration from the hub",
            do="check the files of encoder.configs; where there is no network, set encoder.name "
            "local-dir:FOLDER, a folder that raycd has saved",
        ) from error


def build(model_config: Mapping[str, Any], folder: Path | None = None) -> nn.Module:
    """Build the architecture with random weights, as open_clip's own factory does.

    `folder` is that of a saved encoder, which may hold the configuration of a Hugging Face text
    encoder; without it, that configuration is downloaded. Raises what open_clip and torch raise.
    """
    import open_clip

    settings = json.loads(json.dumps(model_config))  # the models pop from what they are given
    text = settings["text_cfg"]
    custom = settings.pop("custom_text", False) or "hf_model_name" in text
    settings["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
        if folder is not None and (folder / TEXT_TOWER).is_dir():
            text["hf_model_name"] = str(folder / TEXT_TOWER)
    kind = open_clip.CLIP
    if custom:
        kind = open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # open_clip warns of random weights, which are replaced next
    try:
        clip: Any = kind(**settings)
    finally:
        root.setLevel(level)
    if kind is open_clip.CoCa:  # this one it leaves as the memory was
        nn.init.zeros_(clip.text_decoder.text_projection)
    return clip  # type: ignore[no-any-return]  # open_clip's models have no types


def fill(clip: nn.Module, weights: Path) -> None:
    """Load weights, converted where open_clip knows how. Raises WeightsError."""
    import open_clip

    if weights.suffix != ".safetensors":
        raise WeightsError(
            f"{weights} is not a safetensors file",
            expected="a path that ends in .safetensors; raycd reads no pickle",
            do="convert it: safetensors.torch.save_file(state_dict, path)",
        )
    try:
        if isinstance(clip, open_clip.CLIP | open_clip.CustomTextCLIP | open_clip.CoCa):
            open_clip.load_checkpoint(clip, str(weights))
        else:
            clip.load_state_dict(load_file(weights))
    except (
        *(OSError, RuntimeError, KeyError, StopIteration, SafetensorError),
        *(AssertionError, AttributeError, TypeError, ValueError),  # of shapes that do not fit
    ) as error:
        raise WeightsError(
            f"the weights {weights} cannot be read or do not fit the model",
            got=brief(error),
            do="check the file, and that encoder.name is the architecture that it was saved from",
        ) from error
    check_weights(
        clip, f"the encoder {weights}", do="take another file, or run the stage again that wrote it"
    )


def weights_beside(own: Path) -> Path:
    """Return the weights of a folder in open_clip's form, whose own name for them is `own`.

    Those of transformers may lie beside them.
    """
    prefix, folder = own.name[:9], own.parent
    found = sorted(
        folder.glob("*.safetensors"), key=lambda file: (not file.name.startswith(prefix), file)
    )
    if found:
        return found[0]
    pickled = sorted(file for end in ("bin", "pt", "pth") for file in folder.glob(f"*.{end}"))
    return next(iter(pickled), own)  # which is refused with what to do


def recompute_blocks(visual: nn.Module) -> None:
    """Let every residual block of a ModifiedResNet recompute its activations in the backward pass.

    open_clip offers gradient checkpointing for transformers only. Batch norms must be in eval mode,
    or they would count each batch twice. Other image encoders stay as they are.
    """
    from open_clip.modified_resnet import Bottleneck

    for block in visual.modules():
        if isinstance(block, Bottleneck):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def preprocess_of(clip: nn.Module, *known: Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing that open_clip's factory gives a model: later ones of `known` win.

    The size is the image encoder's own.
    """
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    visual: Any = clip.visual
    settings = asdict(PreprocessCfg())
    for described in known:
        settings = merge_preprocess_dict(settings, dict(described))
    return Preprocess.of_open_clip({**settings, "size": visual.image_size})


def described_by_tags(name: str) -> dict[str, Any]:
    """Return the `preprocess_cfg` of a model's pre-trained tags, {} where it has none.

    For weights of no tag. Where the tags differ, the first one's is taken, and said.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg

    tags = open_clip.list_pretrained_tags_by_model(name)
    keys = asdict(PreprocessCfg())
    found = [
        {
            key: value
            for key, value in open_clip.get_pretrained_cfg(name, tag).items()
            if key in keys
        }
        for tag in tags
    ]
    if any(one != found[0] for one in found):
        progress.say(
            f"warning: pre-trained {name} differ in their preprocessing; that of {tags[0]} is "
            "taken. For another one, give a folder with open_clip_config.json (docs/encoders.md)"
        )
    return found[0] if found else {}
