"""CUDA graphs of an encoder: a small batch is one launch on the card in place of hundreds.

A card is done with a few images sooner than Python can launch their kernels one by one. A graph
has fixed sizes and places in memory: it is recorded once for each of SIZES, and a batch is filled
up to the next of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from raycd import progress
from raycd.errors import brief
from raycd.model.encoder import Encoder

SIZES = (1, 2, 4, 8, 16, 32)  # rows; larger batches keep a card busy without
_WARM_UP = 3  # runs before a recording, in which libraries choose their kernels

Function = Callable[[torch.Tensor], torch.Tensor]
Record = Callable[[Function, torch.Tensor], tuple[Callable[[], None], torch.Tensor]]


class Recorded:
    """A function of a batch (B, ...) whose rows do not depend on each other, as graphs.

    What cannot be recorded runs as it is, and that is said. One thread at a time may call it.

    Args:
        what: What the batches are, for people.
        function: Gives (B, D). It waits for nothing, and makes the same steps whatever it is given.
        row: An example (1, ...), on the device.
        record: As `on_cuda`.
    """

    def __init__(self, what: str, function: Function, row: torch.Tensor, record: Record) -> None:
        self._function, self._graphs = function, list[_Graph]()
        try:
            # The largest first, whose memory the others then use
            for rows in reversed(SIZES):
                self._graphs.insert(0, _Graph(function, row, rows, record))
        except RuntimeError as error:
            first = error.__context__ or error  # the end of a broken recording is another error
            progress.say(f"warning: {what} are encoded without CUDA graphs: {brief(first)}")
            self._graphs.clear()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """Return what the function returns."""
        for graph in self._graphs:
            if graph.fits(batch):
                return graph(batch)
        return self._function(batch)


class RecordedEncoder:
    """An encoder's features by CUDA graphs, as its own `encode_images` and `encode_tokens` give.

    Args:
        encoder: On a GPU, where it stays; nothing of it may change.
        record: As `on_cuda`.
    """

    def __init__(self, encoder: Encoder, record: Record | None = None) -> None:
        record = record or on_cuda()
        pixels = torch.zeros((1, *encoder.preprocess.size, 3), dtype=torch.uint8)
        tokens = encoder.tokenize(["is blue"])
        with torch.inference_mode():
            self.encode_images, self.encode_tokens = (
                Recorded(what, function, row.to(encoder.device), record)
                for what, function, row in (
                    ("images", encoder.encode_images, pixels),
                    ("texts", encoder.encode_tokens, tokens),
                )
            )


def on_cuda() -> Record:
    """Return what records a function of a given tensor as a graph: its replay, and its result.

    All that one records share their memory: each result has to be copied before the next replay.
    """
    pool = torch.cuda.graph_pool_handle()
    apart = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's

    def record(function: Function, given: torch.Tensor) -> tuple[Callable[[], None], torch.Tensor]:
        before = torch.cuda.current_stream()
        apart.wait_stream(before)
        with torch.cuda.stream(apart):
            for _ in range(_WARM_UP):
                function(given)
        before.wait_stream(apart)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the card meanwhile
        block = torch.cuda.graph(graph, pool, apart, capture_error_mode="thread_local")
        try:
            with block:
                found = function(given)
        finally:
            torch.cuda.set_stream(before)  # torch 2.11 does not where a recording breaks
        return graph.replay, found

    return record


class _Graph:
    def __init__(self, function: Function, row: torch.Tensor, rows: int, record: Record) -> None:
        self._given = row.repeat(rows, *[1] * (row.dim() - 1))
        self._replay, self._found = record(function, self._given)

    def fits(self, batch: torch.Tensor) -> bool:
        return len(batch) <= len(self._given) and batch.shape[1:] == self._given.shape[1:]

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self._given[: len(batch)].copy_(batch, non_blocking=True)
        self._replay()
        return self._found[: len(batch)].clone()
