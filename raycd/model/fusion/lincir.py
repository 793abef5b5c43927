"""Textual inversion learnt from texts alone, after LinCIR (Gu et al., CVPR 2024, arXiv 2312.01998).

    query = L2(text encoder("a photo of [$] that <text>")),  [$] = phi(x)
    phi   = Lin D->4D GELU drop Lin 4D->4D GELU drop Lin 4D->E

phi turns a feature into a word of the frozen text encoder, of size E. It sees no image while it
learns ("self-masking projection"): of a text with feature z, words are replaced by one [$] =
phi(z + noise), and the feature of what results shall be z again, by the mean square. The noise,
uniform times normal, lets phi take image features, which lie elsewhere.

What differs from the paper: it replaces the nouns and adjectives that a tagger finds, we a run of
words of any kind, at least half of a title, drawn anew each time, since a title is hardly anything
else; x and z are brought to length sqrt(D), so that one noise fits every encoder. The text encoder
belongs to the head, a copy of the one that made the features, as a bundle's parts are files of
their own. Only open_clip's own text transformers with its SimpleTokenizer are supported.

Shapes: B queries, D feature size, L context length, E size of a token's embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from raycd.errors import ConfigError
from raycd.model import architecture, tokenizer
from raycd.model.fusion.head import WORDS, Head
from raycd.model.fusion.registry import HeadConfig

NAME = "lincir"
BEFORE, BETWEEN = "a photo of", "that"


class LinCIR(Head):
    """A word for the reference image, read by the text encoder together with the text.

    `words` are the tokens (B, L) of the texts; the text's own feature is not used.
    """

    needs: ClassVar[frozenset[str]] = frozenset({WORDS})
    on_titles: ClassVar[bool] = True
    drops: ClassVar[bool] = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.tower, words = _text_tower(config.text)
        start, end = words([""])[0, :2].tolist()
        self.start, self.end = start, end  # a second start stands for [$]: no text has one
        before, between = (words([text])[0].tolist() for text in (BEFORE, BETWEEN))
        self.before = [*before[: before.index(end)], start, *between[1 : between.index(end)]]
        dim, hidden = config.dim, 4 * config.dim
        self.phi = nn.Sequential(
            *(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(config.dropout)),
            *(nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(config.dropout)),
            nn.Linear(hidden, self.embedding.embedding_dim),
        )

    @property
    def embedding(self) -> Any:
        """Return the tower's embedding of tokens; a module of its own would be saved twice."""
        return getattr(self.tower, "text", self.tower).token_embedding

    def forward(
        self, image_BD: torch.Tensor, text_BD: torch.Tensor, *, words: torch.Tensor
    ) -> torch.Tensor:
        """Return normalised queries (B, D) of image features (B, D) and tokens (B, L)."""
        found_BD = self.encode(self.prompts(words), self.phi(scaled(image_BD)))
        return F.normalize(found_BD, dim=-1)

    def prompts(self, words_BL: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, L) of "a photo of [$] that <text>"; what is too long is cut."""
        before_BP = torch.tensor(self.before, device=words_BL.device).expand(len(words_BL), -1)
        length = words_BL.shape[1]
        prompt_BL = torch.cat([before_BP, words_BL[:, 1:]], 1)[:, :length].clone()
        cut_B = ~(prompt_BL == self.end).any(1)
        prompt_BL[cut_B, -1] = self.end
        return prompt_BL

    def encode(self, prompt_BL: torch.Tensor, word_BE: torch.Tensor) -> torch.Tensor:
        """Return the features (B, D) of prompts whose [$] have these embeddings."""
        is_word_BL1 = (prompt_BL == self.start)[:, :, None].clone()
        is_word_BL1[:, 0] = False

        def put(module: nn.Module, given: Any, embedded_BLE: torch.Tensor) -> torch.Tensor:
            return torch.where(is_word_BL1, word_BE[:, None].to(embedded_BLE), embedded_BLE)

        handle = self.embedding.register_forward_hook(put)
        try:
            found: torch.Tensor = self.tower.encode_text(prompt_BL).float()
        finally:
            handle.remove()
        return found

    def inversion_loss(self, tokens_BL: torch.Tensor, masked_BL: torch.Tensor) -> torch.Tensor:
        """Return the mean square between texts' features and those of texts with a [$] in them."""
        with torch.no_grad():
            text_BD = self.tower.encode_text(tokens_BL).float()
        unit_BD = scaled(text_BD)
        spread_B1 = torch.rand(len(unit_BD), 1, device=unit_BD.device)
        noisy_BD = unit_BD + spread_B1 * torch.randn_like(unit_BD)
        found_BD = scaled(self.encode(masked_BL, self.phi(noisy_BD)))
        return F.mse_loss(found_BD, unit_BD)


def scaled(feature_BD: torch.Tensor) -> torch.Tensor:
    """Return features at length sqrt(D): the mean square of an entry is 1."""
    return F.normalize(feature_BD.float(), dim=-1) * math.sqrt(feature_BD.shape[-1])


def _text_tower(model_config: Mapping[str, Any]) -> tuple[Any, tokenizer.Tokenizer]:
    """Return a frozen CLIP without its image encoder, and its tokenizer."""
    text = model_config.get("text_cfg", {})
    if not text or "hf_model_name" in text or "hf_tokenizer_name" in text:
        raise ConfigError(
            f"the head {NAME} does not know this encoder's text encoder",
            got=str(text.get("hf_model_name") or text.get("hf_tokenizer_name") or "none"),
            expected="a text transformer of open_clip with its own tokenizer",
            do="take another head, such as sum, or another encoder.name",
        )
    clip: Any = architecture.build(dict(model_config))
    clip.visual = nn.Identity()
    return clip.requires_grad_(False), tokenizer.create(model_config)


def fill(head: LinCIR, clip: nn.Module) -> None:
    """Give a head the weights of an encoder's text encoder."""
    known = {k: v for k, v in clip.state_dict().items() if not k.startswith("visual.")}
    head.tower.load_state_dict(known)


def build(config: HeadConfig) -> LinCIR:
    """Build the head. Raises ConfigError where it does not know the text encoder."""
    return LinCIR(config)
