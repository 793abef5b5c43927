"""Text encoders on CPUs that read no further than a text goes.

A tokenizer fills each text up to the context length: 77 tokens for CLIP, where "is blue, with long
sleeves" has 8. The state at a text's end does not depend on what follows it where the attention is
causal, as in CLIP's text encoder (Radford et al., ICML 2021, 2.4): what stands behind it need not
be computed. Hugging Face's text encoders are given a mask of the padding, with the same effect.

Texts of about the same length are encoded together: a feature does not depend on how long the
other texts of its batch are. GPUs read whole texts: to ask them for lengths would wait for them,
and several small batches take them longer than one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ON = ("cpu",)  # types of devices
STEP = 8  # lengths are multiples of it: texts of a batch are of few lengths then


def encode_text(clip: Any, tokens_BL: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
    """Return features (B, D), not normalised, as the model's own `encode_text`.

    `whole`: all L states are computed.
    """
    is_asked = tokens_BL.device.type in ON and len(tokens_BL) > 0
    is_asked = is_asked and not (whole or torch.compiler.is_compiling())
    tower = _causal_tower(clip) if is_asked else None
    length_B = _lengths(tower, clip, tokens_BL) if is_asked else None
    if length_B is None:
        found: torch.Tensor = clip.encode_text(tokens_BL, normalize=False)
        return found
    lengths = sorted(set(length_B.tolist()))
    groups = [(length_B == length).nonzero()[:, 0] for length in lengths]
    parts = [
        _encoded(tower, clip, tokens_BL[at_K, :length])
        for at_K, length in zip(groups, lengths, strict=True)
    ]
    return torch.cat(parts)[torch.cat(groups).argsort()]


def _encoded(tower: Any, clip: Any, tokens_KL: torch.Tensor) -> torch.Tensor:
    """Return features (K, D) of texts that end within these places."""
    found: torch.Tensor
    if tower is None:
        found = clip.encode_text(tokens_KL, normalize=False)
        return found
    length, dtype = tokens_KL.shape[1], tower.transformer.get_cast_dtype()
    state_KLE = tower.token_embedding(tokens_KL).to(dtype)
    state_KLE = state_KLE + tower.positional_embedding[:length].to(dtype)
    state_KLE = tower.transformer(state_KLE, attn_mask=tower.attn_mask[:length, :length])
    found = _pooled(tower, tower.ln_final(state_KLE), tokens_KL)
    projection = tower.text_projection
    if projection is not None:
        found = projection(found) if isinstance(projection, nn.Linear) else found @ projection
    return found


def _lengths(tower: Any, clip: Any, tokens_BL: torch.Tensor) -> torch.Tensor | None:
    """Return how many places (B,) a text encoder needs for each text; None: all of them."""
    from open_clip.hf_model import HFTextEncoder

    places_BL = torch.arange(tokens_BL.shape[1]).expand_as(tokens_BL)
    if tower is not None:
        end_B = _pooled(tower, places_BL, tokens_BL)
    else:
        text = clip.text if _is_open_clips(clip) and hasattr(clip, "text") else None
        if not isinstance(text, HFTextEncoder):
            return None
        end_B = (places_BL * (tokens_BL != text.config.pad_token_id)).amax(1)
    return ((end_B // STEP + 1) * STEP).clamp(max=tokens_BL.shape[1])


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
