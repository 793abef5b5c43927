"""Stage 1: fine-tuning CLIP on triplets (paper 3.2.1, eqs 2 to 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F

from raycd.config import Config, Finetuning, Stage1Config
from raycd.data import schema
from raycd.data.pixels import PixelCache
from raycd.distributed import own_rows, world_size
from raycd.evaluate import Mean, cached_query, evaluate, text_of
from raycd.features import Features
from raycd.model import lora, precision
from raycd.model.compiling import Compilation, encode_compiled
from raycd.model.encoder import Encoder
from raycd.model.fusion.sum import Sum
from raycd.model.loss import batch_classification_loss
from raycd.progress import say
from raycd.train.batches import Rows
from raycd.train.feed import on_device
from raycd.train.grad_cache import encode_in_chunks
from raycd.train.triplets import (
    Batches,
    Loader,
    TripletBatch,
    TripletReader,
    Work,
    loader_workers,
    readable_triplets,
)

Item = TypeVar("Item")


class SumOfFeatures(nn.Module):
    """Encoder -> (query, target): L2(x_r + t_m) and x_t (eqs 2, 3).

    `chunk` is the number of triplets that are encoded at a time (`grad_cache`); 0: all.
    """

    def __init__(self, encoder: Encoder, chunk: int = 0) -> None:
        super().__init__()
        self.encoder, self.chunk = encoder, chunk

    def forward(
        self, pixels: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised queries (B, D) and target features (B, D).

        Pixels are (2 B, S, S, 3), references before targets, tokens (B, L).
        """
        encoder, device = self.encoder, self.encoder.device
        image_RD = encode_in_chunks(
            encoder.encode_images, pixels.to(device, non_blocking=True), 2 * self.chunk
        )
        text_BD = encode_in_chunks(
            encoder.encode_tokens, tokens.to(device, non_blocking=True), self.chunk
        )
        reference_BD, target_BD = image_RD.chunk(2)
        return F.normalize(reference_BD + text_BD, dim=-1), target_BD


def prepare(encoder: Encoder, settings: Finetuning, seed: int) -> Any:
    """Choose what of the encoder trains; return the adapters for `lora.merge`, if it has some.

    Raises ConfigError where there is nothing that can be adapted.
    """
    whole = "none" if settings.finetune == "lora" else settings.finetune
    encoder.trainable(whole, grad_checkpointing=settings.grad_checkpointing)
    if settings.finetune != "lora":
        return None
    return lora.adapt(encoder, rank=settings.lora_rank, alpha=settings.lora_alpha, seed=seed)


def adamw(module: nn.Module, settings: Finetuning) -> torch.optim.Optimizer:
    """Return AdamW over the parameters that train."""
    return torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        eps=settings.adam_eps,
        fused=True,
    )


def parameters(stage: str, encoder: Encoder) -> dict[str, int]:
    """Return how many parameters train, and how many stay; say so."""
    trained, frozen = (
        sum(p.numel() for p in encoder.parameters() if p.requires_grad == trains)
        for trains in (True, False)
    )
    say(f"{stage}: {trained:,} parameters train, {frozen:,} stay")
    return {"trained": trained, "frozen": frozen}


class TrainsEncoder:
    """What both trainings of the encoder share, stage 1 and the adaptation to titles.

    Args:
        module: Holds the encoder; it trains.
        settings: How.
        paths: Image id -> path, of what `reader` may ask for.
        shown: Ids of the images in the order in which memory is kept for them.
        reader: Makes of the images what reads batches: `work` and items.
        elsewhere: Makes of it the loader that decodes outside of this worker and its processes.
    """

    def __init__(
        self,
        encoder: Encoder,
        module: nn.Module,
        settings: Finetuning,
        config: Config,
        *,
        paths: Mapping[str, str],
        shown: Iterable[str],
        reader: Callable[[PixelCache], Any],
        elsewhere: Callable[[Any], Batches] | None = None,
    ) -> None:
        self.encoder, self.module, self.seed = encoder, module, config.seed
        self.config = settings
        encoder.precision = precision.use(settings.precision, encoder.device)
        prepare(encoder, settings, config.seed)
        self.compilation = Compilation(
            partial(encode_compiled, encoder, trains=True), settings.compile, encoder.device
        )
        self.pixels = PixelCache(
            *(paths, encoder.preprocess, config.data),
            0 if elsewhere else settings.cache_mib,
            first=shown,
        )
        self.pixels.share()
        self.reader = reader(self.pixels)
        self._loader = elsewhere(self.reader) if elsewhere else self._beside()

    def _beside(self) -> Loader:
        """Return the loader that decodes in this worker, or in processes of its own."""
        settings, encoder = self.config, self.encoder
        height, width = encoder.preprocess.size
        size = 2 * 3 * height * width * settings.batch_size // world_size()
        workers = loader_workers(settings.loader_workers, encoder.device, size)
        return Loader(self.reader, workers, pin=encoder.device.type == "cuda")

    def optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW over the parameters that train."""
        return adamw(self.module, self.config)

    def kind(self, epoch: int) -> str:
        """Return "original", for every epoch."""
        return "original"

    def batches(self, epoch: int, rows: Sequence[Rows]) -> Iterator[TripletBatch]:
        """Yield batches on the encoder's device."""
        work = self.reader.work(rows, seed=self.seed, epoch=epoch)
        return on_device(self._loader.batches(work), self.encoder.device)


class FineTune(TrainsEncoder):
    """The task of stage 1.

    `paths` (image id -> path) holds the readable images; triplets of other images are left out.
    """

    name = "stage 1"
    config: Stage1Config

    def __init__(
        self,
        encoder: Encoder,
        dataset: schema.Dataset,
        paths: dict[str, str],
        config: Config,
        elsewhere: Callable[[Any], Batches] | None = None,
    ) -> None:
        self.dataset, self.evaluation = dataset, config.evaluate
        self.triplets, self.left_out = readable_triplets(dataset, paths)
        super().__init__(
            encoder,
            SumOfFeatures(encoder, config.stage1.chunk),
            config.stage1,
            config,
            paths=paths,
            shown=(row[side] for row in self.triplets for side in ("reference", "target")),
            reader=lambda pixels: TripletReader(
                self.triplets, pixels, encoder.tokenizer, dataset.wording
            ),
            elsewhere=elsewhere,
        )

    def count(self, epoch: int) -> int:
        """Return the number of train triplets, the same in every epoch."""
        return len(self.triplets)

    def loss(self, module: nn.Module, batch: TripletBatch) -> torch.Tensor:
        """Return the batch-based classification loss (eq. 4)."""
        query_BD, target_BD = module(batch.pixels, batch.tokens)
        device = query_BD.device
        right_BT = None if batch.right is None else batch.right.to(device)
        target_B = batch.targets.to(device)
        if not self.config.mask_equal_targets:  # as if all differed, on all workers
            target_B, right_BT = own_rows(len(target_B), device), None
        return batch_classification_loss(
            query_BD, target_BD, target_B, self.config.logit_scale, right_BT
        )

    def select(self) -> float | None:
        """Return `stage1.select_by` of L2(x + t) on the split that chooses, or None."""
        if self.config.select_on == "last":
            return None
        split = self.config.select_on
        triplets = self.dataset.queries(split)
        wanted = set(self.dataset.images_of(split))
        wanted |= {one for row in triplets for one in row["subset"] or ()}  # of any gallery
        images = {name: at for at, name in enumerate(self.pixels.paths) if name in wanted}
        texts = list(dict.fromkeys(map(text_of, triplets)))
        measures = Mean(tuple(self.config.select_by))
        # No larger than those of training, which there is shared memory for
        most = min(256, max(1, 2 * self.config.batch_size // world_size()))
        work = [Work.of_images(some) for some in _chunks(list(images.values()), most)]
        batches = on_device(self._loader.batches(work), self.encoder.device)
        with torch.inference_mode():
            image_GD = torch.cat([self.encoder.encode_images(batch.pixels) for batch in batches])
            text_MD = torch.cat(
                [
                    self.encoder.encode_tokens(self.encoder.tokenize(chunk))
                    for chunk in _chunks(texts)
                ]
            )
        features = Features.of(list(images), image_GD)
        query = cached_query(Sum(), features, Features.of(texts, text_MD), self.encoder.device)
        found = evaluate(
            self.dataset,
            split,
            features,
            query,
            protocol=self.evaluation.protocol,
            ks=measures.ks,
            device=self.encoder.device,
        )
        return measures.of(found.recalls)


def _chunks(items: Sequence[Item], size: int = 256) -> Iterator[Sequence[Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))
