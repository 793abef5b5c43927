"""The adaptation to a catalogue: CLIP's contrastive loss on images and their titles.

The loss is CLIP's symmetric cross entropy (Radford et al., ICML 2021), with the negatives of all
workers. In an epoch an image shows one of its texts, drawn by the seed: its title, its attributes,
or both. Images that show the same text are not each other's negatives. The cosines are multiplied
by the encoder's own logit scale, as it was learnt: another one would first undo the pre-training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from raycd.config import AdaptConfig, Config
from raycd.data.pixels import PixelCache
from raycd.model.encoder import Encoder
from raycd.model.loss import batch_classification_loss
from raycd.train.batches import Rows, epoch_choice
from raycd.train.finetune import TrainsEncoder
from raycd.train.grad_cache import encode_in_chunks
from raycd.train.triplets import Batches, TripletBatch, Work

OPTIONS = 6  # texts of an image are repeated to so many: one, two or three are drawn alike


class ImagesAndTexts(nn.Module):
    """Encoder -> features of images and texts, `chunk` rows at a time (`grad_cache`); 0: all."""

    def __init__(self, encoder: Encoder, chunk: int = 0) -> None:
        super().__init__()
        self.encoder, self.chunk = encoder, chunk

    def forward(
        self, pixels: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (B, D) each of pixels (B, S, S, 3) and tokens (B, L)."""
        encoder, device = self.encoder, self.encoder.device
        return (
            encode_in_chunks(encoder.encode_images, pixels.to(device), self.chunk),
            encode_in_chunks(encoder.encode_tokens, tokens.to(device), self.chunk),
        )


class PairReader(Dataset[TripletBatch]):
    """Reader of batches of images and texts; a batch's `pixels` are (B, S, S, 3).

    Args:
        texts: Image id -> its texts, at least one.
    """

    def __init__(
        self, texts: Mapping[str, Sequence[str]], pixels: PixelCache, tokenizer: Any
    ) -> None:
        self.pixels, self.tokenizer, self._ids = pixels, tokenizer, list(texts)
        self._texts = [[own[n % len(own)] for n in range(OPTIONS)] for own in texts.values()]
        distinct = dict.fromkeys(text for own in self._texts for text in own)
        numbers = {text: number for number, text in enumerate(distinct)}
        self._numbers = np.array([[numbers[text] for text in own] for own in self._texts], np.int64)

    def work(self, rows: Sequence[Rows], *, seed: int, epoch: int) -> list[Work]:
        """Return the work on each batch of an epoch, given its rows: which text each shows."""
        choice = epoch_choice(len(self._ids), OPTIONS, seed=seed, epoch=epoch)
        return [Work(own, choice[own], self._numbers[own, choice[own]]) for own in rows]

    def __getitem__(self, work: Work) -> TripletBatch:
        """Return the images of a batch, a text of each, and its number."""
        texts = [self._texts[row][n] for row, n in zip(work.rows, work.texts, strict=True)]
        ids = [self._ids[row] for row in work.rows]
        numbers = torch.from_numpy(work.targets)
        return TripletBatch(self.pixels(ids), self.tokenizer(texts), numbers)


class Adapt(TrainsEncoder):
    """The task of the stage `adapt`.

    Args:
        texts: Image id -> its texts; images without one in `paths` are left out.
        paths: Image id -> path, of the readable images.
        elsewhere: As of `TrainsEncoder`.
    """

    name = "adapt"
    config: AdaptConfig

    def __init__(
        self,
        encoder: Encoder,
        texts: Mapping[str, Sequence[str]],
        paths: Mapping[str, str],
        config: Config,
        elsewhere: Callable[[Any], Batches] | None = None,
    ) -> None:
        self.texts = {image_id: own for image_id, own in texts.items() if image_id in paths}
        super().__init__(
            encoder,
            ImagesAndTexts(encoder, config.adapt.chunk),
            config.adapt,
            config,
            paths={image_id: paths[image_id] for image_id in self.texts},
            shown=self.texts,
            reader=lambda pixels: PairReader(self.texts, pixels, encoder.tokenizer),
            elsewhere=elsewhere,
        )
        scale = self.config.logit_scale
        self.logit_scale = encoder.logit_scale if scale == "auto" else scale

    def count(self, epoch: int) -> int:
        """Return the number of images, the same in every epoch."""
        return len(self.texts)

    def loss(self, module: nn.Module, batch: TripletBatch) -> torch.Tensor:
        """Return the mean of the losses of finding each image's text, and each text's image."""
        image_BD, text_BD = module(batch.pixels, batch.tokens)
        text_B, scale = batch.targets.to(image_BD.device), self.logit_scale
        found = batch_classification_loss(image_BD, text_BD, text_B, scale)
        return (found + batch_classification_loss(text_BD, image_BD, text_B, scale)) / 2

    def select(self) -> float | None:
        """Return None: there is nothing to choose by, the last epoch is taken."""
        return None
