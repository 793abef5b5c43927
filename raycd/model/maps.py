"""What a frozen encoder gives beside pooled features: maps of an image, states of a text's tokens.

| need     | CLIP ResNet     | CLIP ViT (patch tokens)   | timm tower                   |
| -------- | --------------- | ------------------------- | ---------------------------- |
| `map`    | layer4          | last block, after ln_post | forward_features             |
| `middle` | layer3          | block at two thirds       | the same, or the stage before |

`tokens` are the states of an open_clip text transformer after ln_final, before the projection.
They are read by hooks while the encoder computes its pooled features, which therefore stay those of
`Encoder.encode_images` and `encode_tokens`. So only one thread at a time may use an encoder here.

Shapes: B batch, S image side, C channels, H x W positions, L context length, E width of the text
transformer, D feature size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from math import gcd, isqrt
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from raycd.errors import WeightsError, brief
from raycd.features.map_cache import TOKEN_MASK
from raycd.model.encoder import Encoder

IMAGE_NEEDS = ("map", "middle")
TOKENS = "tokens"
NEEDS = (*IMAGE_NEEDS, TOKENS)

Extra = dict[str, torch.Tensor]
_Read = Callable[[Any], torch.Tensor]  # a module's output -> (B, C, H, W) or (B, L, E)
_Listen = Callable[[Callable[[Any], None]], Any]  # tells of a module's output while it is entered


def encode_images(
    encoder: Encoder, pixels_BSS3: torch.Tensor, needs: Collection[str], size: int = 0
) -> tuple[torch.Tensor, Extra]:
    """Return features (B, D) as `Encoder.encode_images`, and a map (B, C, H, W) for each need.

    Args:
        needs: Of IMAGE_NEEDS.
        size: Larger maps are pooled to this side (adaptive average); 0 leaves them.

    Raises:
        WeightsError: It is not known where this encoder has them.
    """
    taps = {need: _image_tap(encoder, need) for need in IMAGE_NEEDS if need in needs}
    with _heard(taps) as found:
        features_BD = encoder.encode_images(pixels_BSS3)
    return features_BD, {need: pooled(map_BCHW.float(), size) for need, map_BCHW in found.items()}


def encode_tokens(encoder: Encoder, tokens_BL: torch.Tensor) -> tuple[torch.Tensor, Extra]:
    """Return features (B, D) as `Encoder.encode_tokens`; `tokens` (B, L, E), `token_mask` (B, L).

    The mask is True for real tokens, begin and end included, and False for padding, which is an end
    of the same number, too, and for a token of the class.

    Raises:
        WeightsError: It is not known where this encoder has them.
    """
    with _heard({TOKENS: _text_tap(encoder)}) as found:
        features_BD = encoder.encode_tokens(tokens_BL, whole=True)
    state_BLE = found[TOKENS].float()
    # open_clip's mode clips writes a token for the class behind the padding, at the last place
    padding = encoder.tokenizer.padding
    if encoder.model_config.get("text_cfg", {}).get("tokenizer_mode") == "clips":
        tokens_BL = tokens_BL.clone()
        tokens_BL[:, -1] = padding
    mask_BL = token_mask(tokens_BL, padding).to(state_BLE.device)
    return features_BD, {TOKENS: state_BLE, TOKEN_MASK: mask_BL}


def pooled(map_BCHW: torch.Tensor, size: int) -> torch.Tensor:
    """Return a map pooled to `size` x `size` positions where it has more; 0 leaves it."""
    if not size or size >= max(map_BCHW.shape[-2:]):
        return map_BCHW
    return F.adaptive_avg_pool2d(map_BCHW, size)


def token_mask(tokens_BL: torch.Tensor, padding: int) -> torch.Tensor:
    """Return a mask (B, L) that is False for the run of padding at a text's end.

    The first token always counts as real, so that no text is empty.
    """
    real_BL = tokens_BL != padding
    real_BL[:, 0] = True
    return real_BL.flip(1).cummax(1).values.flip(1)


@torch.inference_mode()
def shapes(encoder: Encoder, needs: Collection[str], size: int = 0) -> dict[str, list[int]]:
    """Return the shape, without B, of each of an encoder's `needs`, measured on a grey image.

    Raises WeightsError as the functions above.
    """
    found: Extra = {}
    if image_needs := [need for need in IMAGE_NEEDS if need in needs]:
        grey = torch.full((1, *encoder.preprocess.size, 3), 128, dtype=torch.uint8)
        found |= encode_images(encoder, grey, image_needs, size)[1]
    if TOKENS in needs:
        found |= encode_tokens(encoder, encoder.tokenize(["is blue"]))[1]
    return {need: list(found[need].shape[1:]) for need in found if need != TOKEN_MASK}


@contextmanager
def _heard(taps: dict[str, tuple[_Listen, _Read]]) -> Iterator[Extra]:
    """Give what the taps read of all that is computed inside of the block."""
    found: Extra = {}
    with ExitStack() as stack:
        for need, (listen, read) in taps.items():
            stack.enter_context(listen(partial(_keep, found, need, read)))
        yield found


def _keep(found: Extra, need: str, read: _Read, output: Any) -> None:
    found[need] = read(output)


def given(encoder: Encoder) -> dict[str, Any]:
    """Return as JSON values the shape of each need that an encoder gives, and why others are not.

    {"shapes": need -> shape without B, of maps that are not pooled, "lacks": need -> reason}.
    """
    found: dict[str, list[int]] = {}
    lacks: dict[str, str] = {}
    for need in NEEDS:
        try:
            found |= shapes(encoder, [need])
        except Exception as error:  # a tower of another form may raise anything when it is read
            lacks[need] = str(error) if isinstance(error, WeightsError) else brief(error)
    return {"shapes": found, "lacks": lacks}


def shapes_of(known: Mapping[str, Any], needs: Collection[str], size: int = 0) -> dict[str, Any]:
    """Return what `shapes` does, of what `given` has returned. Raises WeightsError as it does."""
    for need in sorted(needs):
        if need in known["lacks"]:
            raise WeightsError(known["lacks"][need])
    found = {need: list(known["shapes"][need]) for need in sorted(needs)}
    for need in found.keys() & {*IMAGE_NEEDS}:
        if size and size < max(found[need][1:]):
            found[need][1:] = [size, size]
    return found


def _image_tap(encoder: Encoder, need: str) -> tuple[_Listen, _Read]:
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    visual = getattr(getattr(encoder, "clip", None), "visual", None)
    last = need == "map"
    positions = partial(_positions, encoder.preprocess.size)
    if isinstance(visual, ModifiedResNet):
        return _output_of(visual.layer4 if last else visual.layer3), _same
    if isinstance(visual, VisionTransformer):
        blocks = visual.transformer.resblocks
        if not last:
            return _output_of(blocks[_two_thirds(blocks)]), positions
        # Some models pool first and normalise the pooled feature: their ln_post fits no patch
        fits = not visual.final_ln_after_pool and visual.attn_pool is None
        norm = visual.ln_post if fits else _same
        return _output_of(blocks[-1]), lambda token_BNC: positions(norm(token_BNC))
    if isinstance(visual, TimmModel):
        trunk = visual.trunk
        if last:
            return partial(_forward_features, trunk), partial(_of_timm, trunk, positions)
        if isinstance(blocks := getattr(trunk, "blocks", None), nn.Sequential | nn.ModuleList):
            return _output_of(blocks[_two_thirds(blocks)]), partial(_of_timm, trunk, positions)
        if isinstance(stages := getattr(trunk, "stages", None), nn.Sequential | nn.ModuleList):
            return _output_of(stages[-2]), partial(_of_timm, trunk, positions)
    raise _unknown(need, visual)


def _text_tap(encoder: Encoder) -> tuple[_Listen, _Read]:
    clip = getattr(encoder, "clip", None)
    text: Any = getattr(clip, "text", clip)
    if not isinstance(getattr(text, "ln_final", None), nn.Module):
        raise _unknown(TOKENS, text)
    if getattr(text, "cls_emb", None) is None:
        return _output_of(text.ln_final), _same
    # CoCa's form normalises its last token alone, which belongs to no word
    return _output_of(text.transformer), lambda state_BLE: text.ln_final(state_BLE[:, :-1])


def _unknown(need: str, tower: object) -> WeightsError:
    return WeightsError(
        f"it is not known where this encoder has what the head needs ({need})",
        got=f"a tower of the kind {type(tower).__name__}",
        expected="a CLIP ResNet, a CLIP ViT, or a timm tower with blocks or stages; "
        "for tokens a text transformer of open_clip",
        do="take a head of pooled features, or another encoder.name",
    )


def _two_thirds(blocks: Any) -> int:
    return max(1, 2 * len(blocks) // 3) - 1


def _output_of(module: nn.Module) -> _Listen:
    @contextmanager
    def listen(tell: Callable[[Any], None]) -> Iterator[None]:
        handle = module.register_forward_hook(lambda module, given, output: tell(output))
        try:
            yield
        finally:
            handle.remove()

    return listen


@contextmanager
def _forward_features(trunk: Any, tell: Callable[[Any], None]) -> Iterator[None]:
    """Tell what timm's `forward_features` returns: a method, for which there are no hooks."""
    method = trunk.forward_features

    def noted(*args: Any, **kwargs: Any) -> Any:
        output = method(*args, **kwargs)
        tell(output)
        return output

    trunk.forward_features = noted
    try:
        yield
    finally:
        del trunk.forward_features  # the class's own is seen again


def _same(output: torch.Tensor) -> torch.Tensor:
    return output


def _positions(pixels: tuple[int, int], token_BNC: torch.Tensor) -> torch.Tensor:
    """Return patch tokens as a map of the shape of an image of so many pixels (height, width).

    Class and register tokens come before them.
    """
    tall, wide = (side // gcd(*pixels) for side in pixels)
    unit = isqrt(token_BNC.shape[1] // (tall * wide))
    height, width = unit * tall, unit * wide
    position_BPC = token_BNC[:, -height * width :]
    return position_BPC.transpose(1, 2).reshape(len(token_BNC), -1, height, width)


def _of_timm(trunk: Any, positions: _Read, output: torch.Tensor) -> torch.Tensor:
    if output.ndim == 3:
        return positions(output)
    channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
    return output.permute(0, 3, 1, 2) if channels_last else output
