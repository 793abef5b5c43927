"""Batches of triplets as pixels and tokens: what stage 1 trains on, decoded in any process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from raycd.data import schema, targets
from raycd.data.captions import Wording
from raycd.data.pixels import PixelCache
from raycd.train.batches import Rows, epoch_targets


def readable_triplets(
    dataset: schema.Dataset, paths: Mapping[str, str]
) -> tuple[list[dict[str, Any]], int]:
    """Return the train triplets whose reference and a target are in `paths`, and how many are not.

    Targets that are not in `paths` are left out of the triplets.
    """
    rows = dataset.triplets_of("train")
    usable = targets.readable(rows, paths).to_pylist()
    return usable, len(rows) - len(usable)


@dataclass(frozen=True)
class TripletBatch:
    """Images and tokens of B triplets."""

    pixels: torch.Tensor  # (2 B, S, S, 3) uint8: references, then targets
    tokens: torch.Tensor  # (B, L)
    targets: torch.Tensor  # (B,) a number for each target image
    right: torch.Tensor | None = None  # (B, T) those of all targets, see `padded`

    def pin_memory(self) -> TripletBatch:
        """Pin the tensors; called by DataLoader where a GPU is used."""
        return TripletBatch(
            self.pixels.pin_memory(),
            self.tokens.pin_memory(),
            self.targets.pin_memory(),
            None if self.right is None else self.right.pin_memory(),
        )


class TripletReader:
    """Reader of batches of `triplets` (rows of schema TRIPLET).

    It holds no encoder, so sending it to a process is cheap.
    """

    def __init__(
        self,
        triplets: Sequence[Mapping[str, Any]],
        pixels: PixelCache,
        tokenizer: Any,
        wording: Wording = Wording(),  # noqa: B008  (frozen)
    ) -> None:
        self.triplets, self.pixels, self.tokenizer = triplets, pixels, tokenizer
        self._image_ids = list(pixels.paths)
        self._texts = [wording.training(triplet["captions"]) for triplet in triplets]
        numbers = {image_id: number for number, image_id in enumerate(self._image_ids)}
        self._first = np.array([numbers[triplet["target"]] for triplet in triplets], np.int64)
        self._right = targets.padded(triplets, numbers)

    def targets(self, *, seed: int, epoch: int) -> Rows:
        """Return the number of each triplet's target in an epoch: of several right ones any."""
        if self._right is None:
            return self._first
        return epoch_targets(self._first, self._right, seed=seed, epoch=epoch)

    def batch(self, rows: Rows, choice: Rows, target: Rows) -> TripletBatch:
        """Return images and one text of each triplet of `rows`.

        `choice` has the number of every triplet's text, `target` that of its target.
        """
        ids = [self.triplets[row]["reference"] for row in rows]
        ids += [self._image_ids[number] for number in target[rows]]
        texts = [self._texts[row][choice[row]] for row in rows]
        right = None if self._right is None else torch.from_numpy(self._right[rows])
        shown = torch.from_numpy(target[rows])
        return TripletBatch(self.pixels(ids), self.tokenizer(texts), shown, right)


class EpochBatches(Dataset[TripletBatch]):
    """The batches of one epoch, by number."""

    def __init__(
        self, reader: TripletReader, rows: Sequence[Rows], choice: Rows, target: Rows
    ) -> None:
        self.reader, self.rows, self.choice, self.target = reader, rows, choice, target

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> TripletBatch:
        if number >= len(self.rows):
            raise IndexError(number)
        return self.reader.batch(self.rows[number], self.choice, self.target)
