"""Text encoders that read no further than the longest text of a batch.

A tokenizer fills each text up to the context length: 77 tokens for CLIP, where "is blue, with long
sleeves" has 8. The state at a text's end does not depend on what follows it where the attention is
causal, as in CLIP's text encoder (Radford et al., ICML 2021, 2.4): what stands behind the last end
of a batch need not be computed. Hugging Face's text encoders are given a mask of the padding, with
the same effect. Of tokens that are on a GPU all is computed, for to ask them for the length would
wait for it; and where it is compiled, for each length would be another compilation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def encode_text(clip: Any, tokens_BL: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
    """Return features (B, D), not normalised, as the model's own `encode_text`, on its device.

    Tokens (B, L) may be elsewhere. `whole`: all L states are computed.
    """
    is_asked = tokens_BL.device.type == "cpu" and len(tokens_BL) > 0
    is_asked = is_asked and not (whole or torch.compiler.is_compiling())
    tower = _causal_tower(clip) if is_asked else None
    length = _length(tower, clip, tokens_BL) if is_asked else None
    own_BL = tokens_BL[:, :length].to(next(clip.parameters()).device, non_blocking=True)
    found: torch.Tensor
    if tower is None:
        found = clip.encode_text(own_BL, normalize=False)
        return found
    dtype = tower.transformer.get_cast_dtype()
    state_BLE = tower.token_embedding(own_BL).to(dtype)
    state_BLE = state_BLE + tower.positional_embedding[:length].to(dtype)
    state_BLE = tower.transformer(state_BLE, attn_mask=tower.attn_mask[:length, :length])
    found = _pooled(tower, tower.ln_final(state_BLE), own_BL)
    projection = tower.text_projection
    if projection is not None:
        found = projection(found) if isinstance(projection, nn.Linear) else found @ projection
    return found


def _length(tower: Any, clip: Any, tokens_BL: torch.Tensor) -> int | None:
    """Return how many places a text encoder needs; None: all of them."""
    from open_clip.hf_model import HFTextEncoder

    if tower is not None:
        places_BL = torch.arange(tokens_BL.shape[1]).expand_as(tokens_BL)
        return int(_pooled(tower, places_BL, tokens_BL).max()) + 1
    text = clip.text if _is_open_clips(clip) and hasattr(clip, "text") else None
    if not isinstance(text, HFTextEncoder):
        return None
    is_text_L = (tokens_BL != text.config.pad_token_id).any(0)
    return max(1, int((is_text_L * torch.arange(1, len(is_text_L) + 1)).max()))


def _causal_tower(clip: Any) -> Any:
    """Return what encodes texts if it is open_clip's, causal, and pools the state of a place."""
    from open_clip import CLIP
    from open_clip.transformer import TextTransformer

    tower = getattr(clip, "text", clip)
    if not _is_open_clips(clip) or type(tower) not in (CLIP, TextTransformer):
        return None
    appends = getattr(tower, "cls_emb", None) is not None  # a token of the class, behind all
    return None if appends or tower.attn_mask is None else tower


def _is_open_clips(clip: Any) -> bool:
    """Tell whether a model is one of open_clip's; those made of them may encode in other ways."""
    from open_clip import CLIP, CoCa, CustomTextCLIP

    return type(clip) in (CLIP, CustomTextCLIP, CoCa)


def _pooled(tower: Any, state_BLx: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Return the state (B, ...) of the place that the tower takes for a text's."""
    from open_clip.transformer import text_global_pool

    # open_clip's CLIP has the attributes of its text transformer under other names
    kind, end = (
        (tower.text_pool_type, tower.text_eos_id)
        if hasattr(tower, "text_pool_type")
        else (tower.pool_type, tower.eos_id)
    )
    found: torch.Tensor = text_global_pool(state_BLx, tokens_BL, kind, eos_token_id=end)
    return found
