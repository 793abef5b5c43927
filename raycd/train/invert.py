"""The training of a head on titles alone: textual inversion (`raycd.model.fusion.lincir`).

It is not compiled: the head changes its text encoder by hooks, at which torch.compile does not look
again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from raycd.config import Config
from raycd.errors import DataError
from raycd.features.map_cache import moved
from raycd.model import precision
from raycd.model.fusion.lincir import LinCIR
from raycd.model.plugins import TextTokenizer
from raycd.train.batches import Rows

Tokens = tuple[torch.Tensor, torch.Tensor]


class Inversion(nn.Module):
    """A head whose forward is its loss, for DistributedDataParallel to wrap."""

    def __init__(self, head: LinCIR) -> None:
        super().__init__()
        self.head = head

    def forward(self, tokens_BL: torch.Tensor, masked_BL: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch, a scalar."""
        return self.head.inversion_loss(tokens_BL, masked_BL)


class Invert:
    """The task of stage 2 of a head that learns from titles.

    Args:
        head: On the device where it trains.
        texts: What it learns from.

    Raises:
        DataError: There are fewer than two texts.
    """

    name = "stage 2"

    def __init__(
        self, head: LinCIR, texts: Sequence[str], tokenizer: TextTokenizer, config: Config
    ) -> None:
        check_texts(texts, config.stage2.head)
        self.config, self.seed, self.head = config.stage2, config.seed, head
        self.module: nn.Module = Inversion(head)
        self.tokens_NL = tokenizer(texts)
        self.device = next(head.parameters()).device
        self.arithmetic = precision.use(self.config.precision, self.device)

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam over the weights of phi."""
        return torch.optim.Adam(self.head.phi.parameters(), lr=self.config.lr, fused=True)

    def count(self, epoch: int) -> int:
        """Return the number of texts, the same in every epoch."""
        return len(self.tokens_NL)

    def kind(self, epoch: int) -> str:
        """Return "original", for every epoch."""
        return "original"

    def batches(self, epoch: int, rows: Sequence[Rows]) -> Iterator[Tokens]:
        """Yield tokens (B, L) of texts, and those with a run of words replaced."""
        self.head.phi.train()
        draws_N2 = np.random.default_rng([self.seed, epoch, 4]).random((len(self.tokens_NL), 2))
        for own in rows:
            tokens_BL = self.tokens_NL[torch.from_numpy(own)]
            masked = [
                masked_run(line, draw, self.head.start, self.head.end)
                for line, draw in zip(tokens_BL, draws_N2[own], strict=True)
            ]
            yield moved(tokens_BL, self.device), moved(torch.stack(masked), self.device)

    def loss(self, module: nn.Module, batch: Tokens) -> torch.Tensor:
        """Return the mean square between features of texts and of what replaces them."""
        bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.arithmetic == "bf16")
        with bf16:
            found: torch.Tensor = module(*batch)
        return found

    def select(self) -> float | None:
        """Return None: no triplet is looked at, the last epoch is taken."""
        return None


def masked_run(
    tokens_L: torch.Tensor, draws_2: Sequence[float], start: int, end: int
) -> torch.Tensor:
    """Return tokens (L,) where a run of at least half of the text's is one `start` instead.

    `draws_2` decide its length and its place; each is from 0 to below 1.
    """
    line = tokens_L.tolist()
    words = line[1 : line.index(end)]
    least = max(1, -(-len(words) // 2))
    length = least + int(draws_2[0] * (max(len(words), 1) - least + 1))
    first = int(draws_2[1] * (len(words) - length + 1)) if words else 0
    kept = [line[0], *words[:first], start, *words[first + length :], end]
    padded = (kept + [0] * len(line))[: len(line)]
    if end not in padded:  # an empty text that fills the context
        padded[-1] = end
    return torch.tensor(padded)


def check_texts(texts: Collection[str], head: str) -> None:
    """Raise DataError where there are fewer than two different texts for a head to learn from."""
    if len(texts) < 2:
        raise DataError(
            f"the head {head} learns from titles and attributes",
            got=f"train images with {len(texts)} different ones",
            do="add a column of titles to the gallery table, or take another head",
        )
