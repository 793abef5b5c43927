from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from raycd.config import ComputeConfig, Config
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.schema import PSEUDO_TRIPLET, Dataset
from raycd.errors import ConfigError
from raycd.features import Features
from raycd.model.loss import batch_classification_loss
from raycd.train.batches import epoch_batches
from raycd.train.fuse import FeatureTriplets, Fuse, new_head, share_below
from raycd.train.loop import Loop, Schedule
from raycd.train.task import Silence
from tests.train.waiting import DEVICES, asked_by_each_step

D, IMAGES = 8, 12
IDS = [f"i{n}" for n in range(IMAGES)]


def settings(**stage2: object) -> Config:
    small = {
        "bilinear_dim": 2,
        "projection_dim": 8,
        "hidden_dim": 8,
        "batch_size": 8,
        "lr": 1e-2,
        "logit_scale": 10.0,
    }
    return Config.model_validate({"stage2": {**small, "select_on": "val", "k": 2, **stage2}})


@pytest.fixture
def dataset() -> Dataset:
    """Return eight train triplets i -> i + 1, and four val triplets over the same images."""
    builder = DatasetBuilder()
    for split, count in (("train", 8), ("val", 4)):
        builder.add_gallery("dress", split, IDS, source="x")
        for n in range(count):
            row = TripletRow(
                f"{split}/{n}", "dress", split, IDS[n], IDS[n + 1], [f"is {n}", "Long."]
            )
            builder.add_triplet(row, where="here")
    return builder.build({})


@pytest.fixture
def images() -> Features:
    return Features.of(IDS, 3 * torch.randn(IMAGES, D, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def texts() -> Features:
    keys = [
        text for n in range(8) for text in (f"Is {n} and Long", f"Long and is {n}", f"Is {n}")
    ] + ["Long"]
    return Features.of(keys, torch.randn(len(keys), D, generator=torch.Generator().manual_seed(1)))


def pseudo(*rows: tuple[str, str, str]) -> pa.Table:
    """Return a table; each row is triplet id, reference, target."""
    made = [
        {
            "triplet_id": t,
            "category": "dress",
            "reference": r,
            "target": g,
            "side": "target",
            "replaced": "i1",
        }
        | {"similarity": 0.9, "rank": 0, "score": 0.8, "encoder": "abc"}
        for t, r, g in rows
    ]
    return pa.Table.from_pylist(made, schema=PSEUDO_TRIPLET)


PSEUDO = (("train/0", "i0", "i9"), ("train/3", "i10", "i4"), ("train/3", "i3", "i9"))


@pytest.fixture
def task(dataset: Dataset, images: Features, texts: Features) -> Fuse:
    return fuse(dataset, images, texts)


def fuse(
    dataset: Dataset,
    images: Features,
    texts: Features,
    *rows: tuple[str, str, str],
    **stage2: object,
) -> Fuse:
    config = settings(**stage2)
    return Fuse(new_head(config, D)[0], dataset, pseudo(*(rows or PSEUDO)), images, texts, config)


def test_an_epoch_of_no_batches_has_none(task: Fuse) -> None:
    assert list(task.batches(0, [])) == []


def everything(task: Fuse, epoch: int) -> FeatureTriplets:
    (batch,) = task.batches(epoch, [np.arange(task.count(epoch))])
    return batch


@pytest.mark.parametrize("device", DEVICES)
def test_steps_ask_the_device_for_nothing(
    dataset: Dataset, images: Features, texts: Features, device: str
) -> None:
    config = settings()
    head = new_head(config, D)[0].to(device)
    task = Fuse(head, dataset, pseudo(*PSEUDO), images, texts, config)
    assert asked_by_each_step(task, 2) == [0, 0]


def test_k_epochs_of_originals_come_before_one_of_pseudo_triplets(task: Fuse) -> None:
    assert [task.kind(epoch) for epoch in range(7)] == ["original", "original", "pseudo"] * 2 + [
        "original"
    ]
    assert [task.count(epoch) for epoch in range(4)] == [8, 8, 3, 8]


@pytest.mark.parametrize("how", ["none found", "switched off"])
def test_without_pseudo_triplets_every_epoch_is_of_originals(
    dataset: Dataset, images: Features, texts: Features, how: str
) -> None:
    config = settings(pseudo=how != "switched off")
    table = pseudo(*PSEUDO) if how == "switched off" else pseudo()
    task = Fuse(new_head(config, D)[0], dataset, table, images, texts, config)
    assert {task.kind(epoch) for epoch in range(10)} == {"original"}
    assert {task.count(epoch) for epoch in range(10)} == {8}


@pytest.mark.parametrize(
    ("workers", "kinds"),
    [
        (3, {"original", "pseudo"}),
        (4, {"original"}),
        ({"min": 1, "max": 3}, {"original", "pseudo"}),
        ({"min": 1, "max": 4}, {"original"}),
    ],
)
def test_pseudo_triplets_that_are_fewer_than_there_may_be_workers_are_left_out(
    dataset: Dataset, images: Features, texts: Features, workers: object, kinds: set[str]
) -> None:
    # By the setting and not by the workers of the moment: no epoch changes its kind on the way
    compute = ComputeConfig.model_validate({"train_workers": workers})
    config = settings().model_copy(update={"compute": compute})
    task = Fuse(new_head(config, D)[0], dataset, pseudo(*PSEUDO), images, texts, config)
    assert len(task.pseudo.target) == 3
    assert {task.kind(epoch) for epoch in range(10)} == kinds


def test_original_triplets_are_rows_of_the_cached_features(task: Fuse) -> None:
    batch = everything(task, 0)
    assert batch.reference.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert batch.target.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


def test_pseudo_triplets_speak_with_the_texts_of_their_source(task: Fuse) -> None:
    batch = everything(task, 2)
    assert batch.reference.tolist() == [0, 10, 3]
    assert batch.target.tolist() == [9, 4, 9]
    keys = task.texts.keys.to_pylist()
    sources = [keys[row] for row in batch.texts]
    for text, number in zip(sources, (0, 3, 3), strict=True):
        assert text in (f"Is {number} and Long", f"Long and is {number}", f"Is {number}", "Long")


def test_all_four_joins_are_shown(task: Fuse) -> None:
    keys = task.texts.keys.to_pylist()
    shown = {keys[everything(task, epoch).texts[0]] for epoch in range(40) if epoch % 3 != 2}
    assert shown == {"Is 0 and Long", "Long and is 0", "Is 0", "Long"}


def test_triplets_without_features_are_left_out(
    dataset: Dataset, images: Features, texts: Features
) -> None:
    left = [key for key in IDS if key not in ("i4", "i9")]
    task = fuse(dataset, Features.of(left, images.take(left)), texts)
    kept = [left[row] for row in task.original.reference.tolist()]
    assert kept == ["i0", "i1", "i2", "i5", "i6", "i7"]
    assert task.count(2) == 6  # no pseudo triplet is left


def test_loss_is_that_of_the_cached_features_and_same_targets_are_no_negatives(task: Fuse) -> None:
    batch = everything(task, 2)
    task.module.eval()
    found = task.loss(task.module, batch)
    query = task.head(task.images.values[batch.reference], task.texts.values[batch.texts])
    logits = 10 * query @ F.normalize(task.images.values[batch.target], dim=-1).T
    logits[0, 2] = logits[2, 0] = -torch.inf  # both are looking for i9
    torch.testing.assert_close(found, F.cross_entropy(logits, torch.arange(3)))


RIGHT = {0: ["i1", "i5", "i9"], 4: ["gone", "i5"]}  # of the other triplets, the next image


@pytest.fixture
def several(images: Features, texts: Features) -> Fuse:
    """Return the task of eight triplets, of which the first has three right targets."""
    builder = DatasetBuilder()
    builder.add_gallery("dress", "train", [*IDS, "gone"], source="x")
    for n in range(8):
        first, *further = RIGHT.get(n, [IDS[n + 1]])
        captions = [f"is {n}", "Long."]
        row = TripletRow(
            f"train/{n}", "dress", "train", IDS[n], first, captions, further_targets=further
        )
        builder.add_triplet(row, where="here")
    return fuse(builder.build({}), images, texts, ("train/0", "i0", "i7"), ("train/3", "i3", "i9"))


def test_each_epoch_draws_one_of_the_right_targets_and_the_same_again(several: Fuse) -> None:
    drawn = [everything(several, epoch).target.tolist() for epoch in range(30) if epoch % 3 != 2]
    assert {targets[0] for targets in drawn} == {1, 5, 9}
    assert {tuple(targets[1:]) for targets in drawn} == {(2, 3, 4, 5, 6, 7, 8)}
    assert drawn[1] == everything(several, 1).target.tolist()
    # The score of a pseudo triplet is of one target
    assert everything(several, 2).target.tolist() == [7, 9]


def test_a_triplet_with_a_weight_shows_its_own_target_in_each_epoch(several: Fuse) -> None:
    weights = pa.array([9.0, *[None] * 7])
    at = several.dataset.triplets.column_names.index("weight")
    triplets = several.dataset.triplets.set_column(at, "weight", weights)
    task = fuse(replace(several.dataset, triplets=triplets), several.images, several.texts)
    for epoch in (0, 1, 3, 4, 6, 7):  # those of originals
        batch = everything(task, epoch)
        assert batch.target[0] == 1
        assert batch.right is not None
        assert set(batch.right[0].tolist()) == {1, 5, 9}  # no negatives


def test_right_targets_of_a_triplet_are_no_negatives_of_it_nor_of_its_pseudo_triplets(
    several: Fuse,
) -> None:
    for epoch in range(12):
        batch = everything(several, epoch)
        several.module.eval()
        head, images = several.head, several.images.values
        query = head(images[batch.reference], several.texts.values[batch.texts])
        logits = 10 * query @ F.normalize(images[batch.target], dim=-1).T
        targets = batch.target.tolist()
        for row, own in enumerate(targets):
            right = {own, *({1, 5, 9} if row == 0 else ())}
            for column, other in enumerate(targets):
                if column != row and other in right:
                    logits[row, column] = -torch.inf
        assert logits.isinf().any()
        expected = F.cross_entropy(logits, torch.arange(len(logits)))
        torch.testing.assert_close(several.loss(several.module, batch), expected)


def test_scores_weigh_pseudo_triplets_by_the_share_of_those_that_match_no_better() -> None:
    shares = share_below(np.array([0.3, 0.9, 0.5, 0.3]))
    assert shares.tolist() == [0.5, 1.0, 0.75, 0.5]


def test_a_pseudo_triplet_counts_as_its_score_says_and_an_original_counts_1(
    dataset: Dataset, images: Features, texts: Features
) -> None:
    table = pseudo(*PSEUDO).set_column(8, PSEUDO_TRIPLET.field("score"), pa.array([0.9, 0.7, 0.8]))
    config = settings(pseudo_weight="score")
    task = Fuse(new_head(config, D)[0], dataset, table, images, texts, config)
    batch = everything(task, 2)
    task.module.eval()
    query = task.head(task.images.values[batch.reference], task.texts.values[batch.texts])
    logits = 10 * query @ F.normalize(task.images.values[batch.target], dim=-1).T
    logits[0, 2] = logits[2, 0] = -torch.inf  # both are looking for i9
    each = F.cross_entropy(logits, torch.arange(3), reduction="none")
    expected = (1.0 * each[0] + each[1] / 3 + each[2] * 2 / 3) / 3
    torch.testing.assert_close(task.loss(task.module, batch), expected)
    assert everything(task, 0).weight is None


def test_without_masking_same_targets_are_negatives(
    dataset: Dataset, images: Features, texts: Features
) -> None:
    task = fuse(dataset, images, texts, mask_equal_targets=False)
    batch = everything(task, 2)
    task.head.eval()
    query = task.head(task.images.values[batch.reference], task.texts.values[batch.texts])
    logits = 10 * query @ F.normalize(task.images.values[batch.target], dim=-1).T
    found = task.loss(task.module, batch)
    torch.testing.assert_close(found, F.cross_entropy(logits, torch.arange(3)))
    assert batch.target[0] == batch.target[2]


def test_training_takes_the_steps_that_the_paper_describes_bit_by_bit(task: Fuse) -> None:
    """Train beside it as eq. 4 and Adam say, with the head called directly."""
    made, _ = new_head(settings(), D)
    adam = torch.optim.Adam(made.parameters(), lr=1e-2, fused=True)
    for epoch in range(3):
        torch.manual_seed(hash((0, epoch, 0)) & 0x7FFFFFFF)
        rows = epoch_batches(task.count(epoch), 4, seed=0, epoch=epoch)
        for batch in task.batches(epoch, rows):
            query = made(task.images.values[batch.reference], task.texts.values[batch.texts])
            target = task.images.values[batch.target]
            loss = batch_classification_loss(query, target, batch.target, 10.0)
            adam.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
            adam.step()
    Loop(task, Schedule(3, 4, 1e-2, seed=0), bar=lambda total, start: Silence()).run()
    for name, value in task.head.state_dict().items():
        assert torch.equal(made.state_dict()[name], value)


def test_features_stay_as_they_are_while_the_head_learns(task: Fuse, images: Features) -> None:
    before = images.values.clone()
    head = {name: value.clone() for name, value in task.module.state_dict().items()}
    history = Loop(task, Schedule(31, 8, 1e-2, seed=0), bar=lambda total, start: Silence()).run()
    assert torch.equal(task.images.values, before)
    assert not task.images.values.requires_grad
    assert all(
        not torch.equal(value, head[name]) for name, value in task.module.state_dict().items()
    )
    assert history[30]["loss"] < 0.7 * history[0]["loss"]
    assert [entry["kind"] for entry in history[:3]] == ["original", "original", "pseudo"]
    assert all(0 <= entry["selection"] <= 1 for entry in history)


def weights(config: Config) -> Sequence[torch.Tensor]:
    return list(new_head(config, D)[0].state_dict().values())


def test_a_new_head_is_drawn_from_the_seed() -> None:
    one, same = weights(settings()), weights(settings())
    other = weights(settings().model_copy(update={"seed": 1}))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


def test_an_impossible_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected: K from 1 to 7"):
        new_head(settings(bilinear_dim=8), D)


def test_in_bf16_the_loss_is_nearly_the_same_and_stays_fp32(
    dataset: Dataset, images: Features, texts: Features
) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        task = fuse(dataset, images, texts, precision=precision, dropout=0.0)
        losses.append(task.loss(task.module, everything(task, 0)))
    assert losses[1].dtype == torch.float32
    assert losses[0].item() != losses[1].item()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.05)
