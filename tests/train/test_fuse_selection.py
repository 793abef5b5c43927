"""How stage 2 chooses an epoch."""

import torch

from raycd.config import EvaluateConfig
from raycd.data.schema import Dataset
from raycd.evaluate import Metric
from raycd.features import Features
from raycd.model.fusion import Head
from raycd.train.batches import epoch_batches
from raycd.train.fuse import Fuse, new_head
from tests.train.test_fuse import (
    IMAGES,
    PSEUDO,
    D,
    dataset,
    fuse,
    images,
    pseudo,
    settings,
    task,
    texts,
)

__all__ = ["dataset", "images", "task", "texts"]


def test_dropout_is_on_in_training_and_off_in_selection(task: Fuse) -> None:
    rows = epoch_batches(8, 8, seed=0, epoch=0)
    list(task.batches(0, rows))
    assert task.head.training
    assert task.select() == task.select()
    head: Head = task.head  # mypy does not know that `select` changes it
    assert not head.training
    list(task.batches(1, rows))
    assert task.head.training


def test_selection_is_recall_at_10_of_the_split_or_nothing(
    dataset: Dataset, images: Features, texts: Features
) -> None:
    task = fuse(dataset, images, texts)
    assert task.select() in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert fuse(dataset, images, texts, select_on="last").select() is None


def test_a_perfect_head_is_selected_with_recall_1(
    dataset: Dataset, images: Features, texts: Features
) -> None:
    class Next(Head):
        def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            at = (image[:, None] == images.values[None]).all(dim=-1).int().argmax(dim=1)
            return images.values[at + 1]

    task = Fuse(Next(), dataset, pseudo(), images, texts, settings())
    assert task.select() == 1.0


def test_the_metric_that_selects_can_be_a_categorys_at_another_rank(
    dataset: Dataset, images: Features, texts: Features
) -> None:
    config = settings()
    task = Fuse(
        new_head(config, D)[0],
        dataset,
        pseudo(*PSEUDO),
        images,
        texts,
        config,
        Metric("dress", IMAGES),
    )
    assert task.select() == 1.0  # every target is among as many as the gallery has


def test_an_epoch_is_chosen_in_batches_of_evaluate_batch_size(
    dataset: Dataset, images: Features, texts: Features
) -> None:
    config = settings().model_copy(update={"evaluate": EvaluateConfig(batch_size=3)})
    head, seen = new_head(config, D)[0], list[int]()
    head.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    Fuse(head, dataset, pseudo(), images, texts, config).measure("train", (10,))
    assert seen == [3, 3, 2]
