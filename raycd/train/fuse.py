"""Stage 2: a fusion head on cached features (paper 3.2.2), k epochs of originals, then one of pseudo triplets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from raycd.config import Config
from raycd.data import schema
from raycd.data.captions import training_texts
from raycd.evaluate import AVERAGE, Features, cached_query, evaluate
from raycd.model import fusion
from raycd.model.loss import batch_classification_loss
from raycd.train.batches import Rows, epoch_choice
from raycd.train.finetune import SELECT_AT


@dataclass(frozen=True)
class FeatureTriplets:
    """Triplets as rows of cached features: N triplets, four texts each."""

    reference: torch.Tensor  # (N,) rows of the image features
    target: torch.Tensor  # (N,)
    texts: torch.Tensor  # (N, 4) rows of the text features


class Fuse:
    """The task of stage 2.

    Args:
        head: The fusion head, on the device where it trains.
        dataset: Its train triplets are the originals.
        pseudo: PSEUDO_TRIPLET table; may be empty.
        images, texts: Features of the frozen encoder, un-normalised. Triplets that need others are left out.
    """

    name = "stage 2"

    def __init__(
        self,
        head: nn.Module,
        dataset: schema.Dataset,
        pseudo: pa.Table,
        images: Features,
        texts: Features,
        config: Config,
    ) -> None:
        self.config, self.evaluation, self.seed = config.stage2, config.evaluate, config.seed
        self.module, self.dataset = head, dataset
        self.device = next((p.device for p in head.parameters()), torch.device("cpu"))
        self.images = Features(images.rows, images.values.to(self.device))
        self.texts = Features(texts.rows, texts.values.to(self.device))
        train = dataset.triplets_of("train").to_pylist()
        captions = {row["triplet_id"]: row["captions"] for row in train}
        self.original = self._rows(train, captions)
        self.pseudo = self._rows(pseudo.to_pylist() if config.stage2.pseudo else [], captions)

    def _rows(self, triplets: Sequence[dict[str, str]], captions: dict[str, list[str]]) -> FeatureTriplets:
        known = [row for row in triplets if row["reference"] in self.images and row["target"] in self.images]
        texts = [[self.texts.rows[text] for text in training_texts(captions[row["triplet_id"]])] for row in known]
        return FeatureTriplets(
            reference=self._tensor([self.images.rows[row["reference"]] for row in known]),
            target=self._tensor([self.images.rows[row["target"]] for row in known]),
            texts=self._tensor(texts).reshape(-1, 4),
        )

    def _tensor(self, rows: object) -> torch.Tensor:
        return torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(self.device)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, as in the paper."""
        return torch.optim.Adam(self.module.parameters(), lr=self.config.lr)

    def _triplets(self, epoch: int) -> FeatureTriplets:
        is_pseudo = epoch % (self.config.k + 1) == self.config.k and len(self.pseudo.target) > 0
        return self.pseudo if is_pseudo else self.original

    def count(self, epoch: int) -> int:
        """All triplets of the epoch's kind."""
        return len(self._triplets(epoch).target)

    def kind(self, epoch: int) -> str:
        """k epochs of "original", then one of "pseudo"."""
        return "pseudo" if self._triplets(epoch) is self.pseudo else "original"

    def batches(self, epoch: int, rows: Sequence[Rows]) -> Iterator[FeatureTriplets]:
        """Rows of features, with one text chosen for each triplet: `texts` is (B,) here."""
        triplets = self._triplets(epoch)
        self.module.train()
        choice = self._tensor(epoch_choice(len(triplets.target), 4, seed=self.seed, epoch=epoch))
        for own in rows:
            at = self._tensor(own)
            yield FeatureTriplets(triplets.reference[at], triplets.target[at], triplets.texts[at, choice[at]])

    def loss(self, module: nn.Module, batch: FeatureTriplets) -> torch.Tensor:
        """Batch-based classification loss (eq. 4); triplets of the same target are not each other's negatives."""
        query_BD = module(self.images.values[batch.reference], self.texts.values[batch.texts])
        target_BD = self.images.values[batch.target]
        return batch_classification_loss(query_BD, target_BD, batch.target, self.config.logit_scale)

    def select(self) -> float | None:
        """Mean recall@10 on the split that chooses, or None."""
        if self.config.select_on == "last":
            return None
        self.module.eval()
        query = cached_query(self.module, self.images, self.texts, self.device)
        found = evaluate(
            self.dataset,
            self.config.select_on,
            self.images,
            query,
            protocol=self.evaluation.protocol,
            ks=[SELECT_AT],
            device=self.device,
        )
        return found.recalls[AVERAGE][f"recall@{SELECT_AT}"]


def new_head(config: Config, dim: int) -> tuple[nn.Module, fusion.HeadConfig]:
    """A head with weights drawn from the seed. Raises ConfigError for impossible sizes."""
    torch.manual_seed(config.seed)
    head_config = fusion.HeadConfig.of(config.stage2, dim)
    return fusion.create(head_config), head_config
