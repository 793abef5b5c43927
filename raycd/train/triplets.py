"""Batches of triplets as pixels and tokens: what stage 1 trains on, decoded in any process."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from raycd import progress
from raycd.data import schema, targets
from raycd.data.captions import Wording
from raycd.data.pixels import PixelCache
from raycd.errors import RaycdError
from raycd.model.threads import usable_cpus
from raycd.train.batches import Rows, epoch_choice, epoch_targets

MOST_WORKERS = 16  # a process more takes half a gigabyte
SHARED = Path("/dev/shm")  # through which batches come from other processes
IN_FLIGHT = 3  # batches of each process there: two are read ahead


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
        return self._each(torch.Tensor.pin_memory)

    def to(self, device: torch.device) -> TripletBatch:
        """Return it on a device, copied from pinned memory without waiting."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of its tensors until `stream` has used them."""
        for tensor in (self.pixels, self.tokens, self.targets, self.right):
            if tensor is not None:
                tensor.record_stream(stream)

    def _each(self, act: Callable[[torch.Tensor], torch.Tensor]) -> TripletBatch:
        right = None if self.right is None else act(self.right)
        return TripletBatch(act(self.pixels), act(self.tokens), act(self.targets), right)


class Work(NamedTuple):
    """A batch to read: numbers of B triplets, of the text of each, of its target image."""

    rows: Rows
    texts: Rows
    targets: Rows

    @classmethod
    def of_images(cls, numbers: Sequence[int]) -> Work:
        """Return the work on images alone: no triplet, and these as targets."""
        none = np.zeros(0, np.int64)
        return cls(none, none, np.array(numbers, np.int64))


class TripletReader(Dataset[TripletBatch]):
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

    def work(self, rows: Sequence[Rows], *, seed: int, epoch: int) -> list[Work]:
        """Return the work on each batch of an epoch, given its rows: what each triplet shows."""
        choice = epoch_choice(len(self.triplets), 4, seed=seed, epoch=epoch)
        target = self.targets(seed=seed, epoch=epoch)
        return [Work(own, choice[own], target[own]) for own in rows]

    def __getitem__(self, work: Work) -> TripletBatch:
        """Return images and one text of each triplet of a batch."""
        ids = [self.triplets[row]["reference"] for row in work.rows]
        ids += [self._image_ids[number] for number in work.targets]
        pairs = zip(work.rows, work.texts, strict=True)
        texts = [self._texts[row][text] for row, text in pairs]
        right = None if self._right is None else torch.from_numpy(self._right[work.rows])
        shown = torch.from_numpy(work.targets)
        tokens = self.tokenizer(texts) if texts else torch.zeros(0, 0, dtype=torch.int64)
        return TripletBatch(self.pixels(ids), tokens, shown, right)


class ReturnsErrors(Dataset[TripletBatch | RaycdError]):
    """A reader that returns its errors: raised in another process, they would not come whole."""

    def __init__(self, reader: Dataset[TripletBatch]) -> None:
        self.reader = reader

    def __getitem__(self, work: Work) -> TripletBatch | RaycdError:
        try:
            return self.reader[work]
        except RaycdError as error:
            return error


class Batches(Protocol):
    """Where the batches of an epoch come from."""

    def batches(self, work: Sequence[Work]) -> Iterator[TripletBatch]:
        """Yield them. Raises BrokenImage where one cannot be read any more."""


class Loader:
    """A `TripletReader`, or another, in this process or others, which stay between epochs."""

    def __init__(self, reader: Dataset[TripletBatch], workers: int, *, pin: bool) -> None:
        self._work: list[Work] = []
        self._loader = DataLoader(
            ReturnsErrors(reader),
            batch_size=None,
            sampler=self._work,
            num_workers=workers,
            # fork hangs once torch has used threads
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin,
        )

    def batches(self, work: Sequence[Work]) -> Iterator[TripletBatch]:
        """Yield the batches of an epoch. Raises BrokenImage where one cannot be read any more."""
        self._work[:] = work
        for batch in self._loader:
            if isinstance(batch, RaycdError):
                raise batch
            yield batch


def loader_workers(
    wanted: int | Literal["auto"], device: torch.device, batch_bytes: int = 0
) -> int:
    """Return the processes that decode for a training worker.

    By auto they are the CPUs that this process may use, shared by the workers of its machine, but
    one that the worker needs itself; and no more than shared memory has room for the batches of, of
    `batch_bytes` each. On a CPU they would take what training needs: none.
    """
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return 0
    together = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    found = min(max(usable_cpus() // together - 1, 1), MOST_WORKERS)
    room = _shared_bytes() // together // max(1, IN_FLIGHT * batch_bytes)
    if room < found:
        progress.say(
            f"warning: {room} processes decode images in place of {found}: {SHARED} has no room "
            "for the batches of more (in a container: --shm-size 8g)"
        )
    return min(found, room)


def _shared_bytes() -> int:
    return shutil.disk_usage(SHARED).free if SHARED.is_dir() else sys.maxsize
