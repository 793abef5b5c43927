"""Stage 2: a fusion head on cached features (paper 3.2.2).

k epochs of original triplets are followed by one of pseudo triplets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import nn

from raycd import progress
from raycd.config import Config
from raycd.data import schema, targets
from raycd.distributed import own_rows
from raycd.errors import ConfigError
from raycd.evaluate import Evaluation, Mean, Metric, cached_query, evaluate
from raycd.evaluate.rerank import cached_rerank
from raycd.features import Features
from raycd.features.map_cache import NOTHING, Extras
from raycd.model import fusion, lora, precision
from raycd.model.compiling import Compilation, once
from raycd.model.fusion import Head, HeadBatch
from raycd.model.fusion.joint import NAME
from raycd.train import hard_negatives
from raycd.train.batches import Rows, epoch_choice, epoch_targets
from raycd.train.hard_negatives import NONE, HardNegatives

NO_ROWS: Rows = np.zeros(0, np.int64)


@dataclass(frozen=True)
class FeatureTriplets:
    """Triplets as rows of cached features: N triplets, four texts each."""

    reference: torch.Tensor  # (N,) rows of the image features
    target: torch.Tensor  # (N,)
    texts: torch.Tensor  # (N, 4) rows of the text features
    right: torch.Tensor | None = None  # (N, T) rows of all right targets, see `targets.padded`
    weight: torch.Tensor | None = None  # (N,) what each counts in the loss; None: 1
    on_cpu: torch.Tensor | None = None  # (N, 3) reference, target and text, where caches are read
    origin: torch.Tensor | None = None  # (N,) rows of the originals' targets, -1 where unknown
    pool: torch.Tensor | None = None  # (N,) where hard negatives are from
    negatives: torch.Tensor | None = None  # (N, m) rows of their own, NONE where there are fewer
    hard: torch.Tensor | None = None  # (B, n) rows of a batch's hard negatives, NONE where none is
    drawn: torch.Tensor | None = None  # (N, T) as `right`: those that an epoch draws from
    extra: Mapping[str, Any] | None = None  # of a batch: those of a `HeadBatch` from the caches

    def part(self, rows: slice) -> FeatureTriplets:
        """Return some of them."""
        given = (getattr(self, field.name) for field in fields(self))
        own: list[Any] = [None if values is None else values[rows] for values in given]
        return FeatureTriplets(*own)


class HeadLoss(nn.Module):
    """A head whose forward is its training loss, for DistributedDataParallel to wrap."""

    def __init__(self, head: Head, logit_scale: float) -> None:
        super().__init__()
        self.head, self.logit_scale = head, logit_scale

    def forward(self, batch: HeadBatch) -> torch.Tensor:
        """Return the loss of a batch, a scalar."""
        return self.head.training_loss(batch, self.logit_scale)


class Fuse:
    """The task of stage 2. Its module holds the head under the name `head`.

    Args:
        head: The fusion head, on the device where it trains.
        dataset: Its train triplets are the originals.
        pseudo: PSEUDO_TRIPLET table; may be empty.
        images, texts: Features of the frozen encoder, un-normalised. Triplets that need others are
            left out.
        metric: Chooses the best epoch, on the split `stage2.select_on`; None: `stage2.select_by`.
        extras: Caches of what the head needs beside the features.
        neighbours: Table raycd.mine.NEIGHBOURS of these images, where `stage2.hard_negatives` asks
            for them.
    """

    name = "stage 2"

    def __init__(
        self,
        head: Head,
        dataset: schema.Dataset,
        pseudo: pa.Table,
        images: Features,
        texts: Features,
        config: Config,
        metric: Metric | None = None,
        extras: Extras = NOTHING,
        neighbours: pa.Table | None = None,
    ) -> None:
        self.config, self.evaluation, self.seed = config.stage2, config.evaluate, config.seed
        # Two triplets a worker at least, as Ray Train is told
        self._most_workers = min(
            config.compute.most_train_workers, max(1, config.stage2.batch_size // 2)
        )
        self.head, self.dataset = head, dataset
        self.module = HeadLoss(head, config.stage2.logit_scale)
        self.metric = metric or Mean(tuple(self.config.select_by))
        self.device = next((p.device for p in head.parameters()), torch.device("cpu"))
        # Texts are of another length in each batch, and one shape is compiled
        wanted = False if "tokens" in head.needs else self.config.compile
        if self.config.compile is True and not wanted:
            progress.say(f"the head {self.config.head} is not compiled")
        self.compilation = Compilation(self._compile, wanted, self.device)
        self.arithmetic = precision.use(self.config.precision, self.device)
        self.images, self.texts = images.to(self.device), texts.to(self.device)
        self.extras = extras
        self._hard = None
        if self.config.hard_negatives:
            assert neighbours is not None, "the mined table comes with the setting"
            self._hard = HardNegatives(
                neighbours, self.config.hard_negatives, len(images.values), self.device
            )
        train = dataset.triplets_of("train")
        text_T4 = [dataset.wording.training(row) for row in train["captions"].to_pylist()]
        rows = texts.among(text for texts_4 in text_T4 for text in texts_4)
        self._text_T4 = np.array(
            [[rows[text] for text in texts_4] for texts_4 in text_T4], np.int64
        ).reshape(-1, 4)
        known = images.among([*targets.images_of(train), *hard_negatives.named(train)])
        self._right_NT = targets.padded(train.to_pylist(), known)
        weighted_N1 = train["weight"].is_valid().to_numpy()[:, None]  # a weight is of its target
        self._drawn_NT = self._right_NT
        if self._right_NT is not None:
            self._drawn_NT = np.where(weighted_N1, -1, self._right_NT)
        self._negative_Nm = hard_negatives.own(train, known)
        check_hard_negatives(config, train)
        self._weight_N = train["weight"].fill_null(1.0).to_numpy()
        self._is_weighted = train["weight"].null_count < len(train)
        self._ids = train["triplet_id"].combine_chunks()
        self._origin_N = images.find(train["target"])
        self.original = self._rows(targets.readable(train, known))
        self.pseudo = self._rows(pseudo if config.stage2.pseudo else pseudo.slice(0, 0))

    def _rows(self, triplets: pa.Table) -> FeatureTriplets:
        """Return those triplets, originals or replacements of them, whose images have features."""
        reference, target = (self.images.find(triplets[side]) for side in ("reference", "target"))
        known = np.flatnonzero((reference >= 0) & (target >= 0))
        original = pc.index_in(triplets["triplet_id"], value_set=self._ids).to_numpy()[known]
        return FeatureTriplets(
            reference=self._tensor(reference[known]),
            target=self._tensor(target[known]),
            texts=self._tensor(self._text_T4[original]),
            right=None if self._right_NT is None else self._tensor(self._right_NT[original]),
            drawn=None if self._drawn_NT is None else self._tensor(self._drawn_NT[original]),
            weight=self._weight(triplets, known, original),
            origin=self._tensor(self._origin_N[original]),
            pool=None
            if self._hard is None
            else self._hard.pools(triplets["category"])[known].to(self.device),
            negatives=None
            if self._negative_Nm is None
            else self._tensor(self._negative_Nm[original]),
        )

    def _weight(
        self, triplets: pa.Table, known: NDArray[np.int64], original: NDArray[np.int64]
    ) -> torch.Tensor | None:
        """Return the weights of originals, those of pseudo triplets times what their scores say.

        None where each counts 1.
        """
        by_score = self.config.pseudo_weight == "score" and "score" in triplets.column_names
        if not self._is_weighted and not by_score:
            return None
        weight_N = self._weight_N[original]
        if by_score:
            weight_N = weight_N * share_below(triplets["score"].to_numpy())[known]
        return torch.from_numpy(weight_N.astype(np.float32)).to(self.device)

    def _tensor(self, rows: object) -> torch.Tensor:
        return torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(self.device)

    def _compile(self, must: bool) -> None:
        self.module.forward = once(  # type: ignore[method-assign]  # of this one alone
            self.module.forward, must, trains=True
        )

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam, as in the paper; fused, with the same updates in a fifth of the time."""
        return torch.optim.Adam(self.module.parameters(), lr=self.config.lr, fused=True)

    def _triplets(self, epoch: int) -> FeatureTriplets:
        is_turn = epoch % (self.config.k + 1) == self.config.k
        # Of fewer than there may be workers, one would have nothing to do
        is_enough = len(self.pseudo.target) >= self._most_workers
        return self.pseudo if is_turn and is_enough else self.original

    def count(self, epoch: int) -> int:
        """Return the number of triplets of the epoch's kind."""
        return len(self._triplets(epoch).target)

    def kind(self, epoch: int) -> str:
        """Return "original" for k epochs, then "pseudo" for one."""
        return "pseudo" if self._triplets(epoch) is self.pseudo else "original"

    def batches(self, epoch: int, rows: Sequence[Rows]) -> Iterator[FeatureTriplets]:
        """Yield rows of features with one text for each triplet: `texts` is (B,) here."""
        triplets = self._triplets(epoch)
        self.module.train()
        # The epoch at once: copying the rows of each batch would wait for the device each time
        choice = self._tensor(epoch_choice(len(triplets.target), 4, seed=self.seed, epoch=epoch))
        target, at = self._targets(triplets, epoch), self._tensor(np.concatenate([NO_ROWS, *rows]))
        whole = FeatureTriplets(
            triplets.reference[at],
            target[at],
            triplets.texts[at, choice[at]],
            None if triplets.right is None else triplets.right[at],
            None if triplets.weight is None else triplets.weight[at],
            hard=self._hard_negatives(triplets, at, target[at]),
        )
        if self.extras.caches:
            shown = (whole.reference, whole.target, whole.texts)
            whole = replace(whole, on_cpu=torch.stack(shown, 1).cpu())
        first = 0
        for own in rows:
            part = whole.part(slice(first, first := first + len(own)))
            # Here, so that the time it takes counts as waiting for data
            yield replace(part, extra=self._extra(part)) if self.extras.caches else part

    def _hard_negatives(
        self, triplets: FeatureTriplets, at: torch.Tensor, target_B: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the rows (B, n) of those triplets' hard negatives, which are right for none.

        For a pseudo triplet the target of its original is right, too. Those of the triplet's own
        come before those that were mined, which may be the same images.
        """
        own = [] if triplets.negatives is None else [triplets.negatives[at]]
        assert triplets.origin is not None, "`_rows` gives it"
        right = [target_B[:, None], triplets.origin[at][:, None]]
        right += [] if triplets.right is None else [triplets.right[at]]
        right_BT = torch.cat(right, dim=1)
        if self._hard is not None and triplets.pool is not None:
            own.append(self._hard.mined(triplets.pool[at], target_B))
        return hard_negatives.but(torch.cat(own, dim=1), right_BT) if own else None

    def _targets(self, triplets: FeatureTriplets, epoch: int) -> torch.Tensor:
        """Return the rows (N,) of the targets in an epoch: of several right ones any.

        A pseudo triplet's target is the one that its score is of, that of a triplet with a weight
        the one that this is of: its first.
        """
        if triplets.drawn is None or triplets is self.pseudo:
            return triplets.target
        first, drawn = (rows.cpu().numpy() for rows in (triplets.target, triplets.drawn))
        return self._tensor(epoch_targets(first, drawn, seed=self.seed, epoch=epoch))

    def loss(self, module: nn.Module, batch: FeatureTriplets) -> torch.Tensor:
        """Return the head's loss: for most, the batch-based classification loss (eq. 4)."""
        bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.arithmetic == "bf16")
        with bf16:
            found: torch.Tensor = module(self.head_batch(batch))
        return found

    def head_batch(self, batch: FeatureTriplets) -> HeadBatch:
        """Return the features of a batch's triplets.

        Triplets of the same target are not each other's negatives, nor are targets that are right
        for a triplet, too: where an original has several, all of them, for its pseudo triplets as
        well. The single target of an original may be a negative of these, as in the paper's eq. 4.
        All are negatives, where `stage2.mask_equal_targets` is false.
        """
        every = own_rows(len(batch.target), self.device)  # differ on all workers
        masked = self.config.mask_equal_targets
        return HeadBatch(
            image_BD=self.images.values[batch.reference],
            text_BD=self.texts.values[batch.texts],
            target_BD=self.images.values[batch.target],
            target_B=batch.target if masked else every,
            image_B=batch.reference if masked else every,
            right_BT=batch.right if masked else None,
            weight_B=batch.weight,
            soft=self.config.soft_targets,
            hard_BnD=None if batch.hard is None else self.images.values[batch.hard.clamp(min=0)],
            hard_Bn=None if batch.hard is None else batch.hard != NONE,
            **(batch.extra or {}),
        )

    def _extra(self, batch: FeatureTriplets) -> dict[str, dict[str, torch.Tensor]]:
        """Return `extra` and `target_extra` of a `HeadBatch`, read from the caches."""
        assert batch.on_cpu is not None, "`batches` has them where there are caches"
        known = (self.images, self.images, self.texts)
        reference, target, texts = (
            own.keys.take(pa.array(rows.numpy())).to_pylist()
            for own, rows in zip(known, batch.on_cpu.T, strict=True)
        )
        extras, only = self.extras, self.head.needs_of_target
        of_reference = extras.of_images(reference, self.device)
        return {
            "extra": of_reference | extras.of_texts(texts, self.device),
            "target_extra": extras.of_images(target, self.device, only=only),
        }

    def select(self) -> float | None:
        """Return the metric on the split that chooses, or None."""
        if self.config.select_on == "last":
            return None
        return self.metric.of(self.measure(self.config.select_on, self.metric.ks).recalls)

    def measure(self, split: str, ks: Sequence[int]) -> Evaluation:
        """Ask the triplets of a split as the settings of `evaluate` say, with recalls at `ks`."""
        known = (self.head.eval(), self.images, self.texts)
        return evaluate(
            self.dataset,
            split,
            self.images,
            cached_query(*known, self.device, self.extras),
            protocol=self.evaluation.protocol,
            ks=ks,
            batch_size=self.evaluation.batch_size,
            device=self.device,
            rerank=cached_rerank(*known, self.evaluation.rerank_depth, self.device),
        )


def share_below(score_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what share (N,) of the scores is at or below each: from above 0 to 1.

    So a weight means the same whatever an encoder's cosines are.
    """
    below = np.searchsorted(np.sort(score_N), score_N, side="right")
    share: NDArray[np.float64] = below / max(len(score_N), 1)
    return share


def check_joint(config: Config, composes: bool) -> None:
    """Raise ConfigError where an encoder is asked for what it cannot do.

    `composes` is `Encoder.composes`; such an encoder is not trained, and no other has the head
    joint. LoRA needs its package.
    """
    adapted = [config.adapt.finetune] if config.adapt.epochs else []
    if "lora" in (config.stage1.finetune, *adapted):
        lora.check_installed()
    if composes and (config.stage1.finetune != "none" or adapted):
        raise ConfigError(
            "an encoder that composes image and text by itself is not fine-tuned",
            got=f"stage1.finetune {config.stage1.finetune}, adapt.epochs {config.adapt.epochs}",
            do="set stage1.finetune none and adapt.epochs 0",
        )
    if config.stage2.head == NAME and not composes:
        raise ConfigError(
            "stage2.head joint is for encoders that compose image and text by themselves",
            got=f"encoder.name {config.encoder.name}",
            expected="encoder.name sentence_transformers",
            do="set another head, or another encoder",
        )


def check_hard_negatives(config: Config, train: pa.Table | None = None) -> None:
    """Raise ConfigError where a head that trains has no loss for hard negatives, which there are.

    `train` are the triplets (schema TRIPLET), which may name negatives of their own.
    """
    head = fusion.head_class(config.stage2.head)
    if not head.trains or head.takes_hard_negatives():
        return
    named = train is not None and bool(hard_negatives.named(train))
    if config.stage2.hard_negatives or named:
        raise ConfigError(
            f"the loss of the head {config.stage2.head} takes no hard negatives",
            got="triplets that name negatives" if named else "stage2.hard_negatives above 0",
            expected="a head whose loss is the batch-based classification loss (eq. 4)",
            do="leave out their column (jobs/feedback.py --negatives 0)"
            if named
            else "set stage2.hard_negatives 0, or another head, such as clip_cd",
        )


def new_head(
    config: Config,
    dim: int,
    extra: Mapping[str, list[int]] | None = None,
    text: Mapping[str, Any] | None = None,
) -> tuple[Head, fusion.HeadConfig]:
    """Build a head with weights drawn from the seed. Raises ConfigError for impossible sizes.

    `extra` are the shapes of what it needs beside features of size `dim`; `text` is the
    configuration of the encoder, for heads that have a copy of its text encoder.
    """
    check_hard_negatives(config)
    torch.manual_seed(config.seed)
    head_config = fusion.HeadConfig.of(config.stage2, dim, extra, text)
    return fusion.create(head_config), head_config
