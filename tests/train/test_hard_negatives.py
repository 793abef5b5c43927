"""Hard negatives of stage 2: which they are, what they add to the loss, which heads take them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from raycd.config import Config
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.schema import PSEUDO_TRIPLET, Dataset
from raycd.errors import ConfigError
from raycd.features import Features
from raycd.mine import NEIGHBOURS
from raycd.model import fusion
from raycd.model.fusion import Head
from raycd.train.fuse import FeatureTriplets, Fuse, check_hard_negatives, new_head
from raycd.train.hard_negatives import HardNegatives, but

CPU = torch.device("cpu")
IDS = [f"i{n}" for n in range(8)]


def table(*rows: tuple[str, int, list[int], list[float]]) -> pa.Table:
    made = [(*row, False) for row in rows]
    return pa.Table.from_pylist(
        [dict(zip(NEIGHBOURS.names, row, strict=True)) for row in made], schema=NEIGHBOURS
    )


ALL = table(
    ("", 1, [4, 2, 5], [0.9, 0.8, 0.7]),
    ("", 2, [6, 7, 1, 0], [1.0, 0.9999995, 0.9, 0.8]),  # 6 and 7 are the same picture
    ("", 3, [0], [0.9]),
    ("", 4, [1, 3, 5], [0.9, 0.8, 0.7]),
)


def of(neighbours: pa.Table, count: int, targets: list[int], right: list[list[int]]) -> Any:
    hard = HardNegatives(neighbours, count, len(IDS), CPU)
    pool = hard.pools(pa.chunked_array([["dress"] * len(targets)]))
    return but(hard.mined(pool, torch.tensor(targets)), torch.tensor(right)).tolist()


def test_a_triplet_has_the_nearest_images_of_its_target_but_for_equal_and_right_ones() -> None:
    found = of(ALL, 2, [1, 2, 3, 4, 5], [[1, -1], [2, 0], [3, -1], [4, 3], [5, -1]])
    # of 4 the nearest is 1; 3 is right; 5 was not mined for
    assert found == [[4, 2], [1, -1], [0, -1], [1, -1], [-1, -1]]


def test_where_pools_are_categories_a_triplet_has_neighbours_of_its_own() -> None:
    neighbours = table(("dress", 1, [2], [0.9]), ("shirt", 1, [3], [0.9]), ("shirt", 2, [], []))
    hard = HardNegatives(neighbours, 1, len(IDS), CPU)
    pool = hard.pools(pa.chunked_array([["shirt", "dress"], ["shirt"]]))
    target = torch.tensor([1, 1, 2])
    assert but(hard.mined(pool, target), target[:, None]).tolist() == [[3], [2], [-1]]


def test_without_a_single_mined_image_there_are_none() -> None:
    empty = NEIGHBOURS.empty_table()
    assert of(empty, 2, [1], [[1]]) == [[-1, -1]]


class Echo(Head):
    """The query is the image feature, so that losses can be computed by hand."""

    def forward(self, image_BD: torch.Tensor, text_BD: torch.Tensor) -> torch.Tensor:
        return image_BD


@pytest.fixture
def dataset() -> Dataset:
    """Return the triplets i0 -> i1 and i5 -> i4."""
    builder = DatasetBuilder()
    builder.add_gallery("dress", "train", IDS, source="x")
    for n, (reference, target) in enumerate([("i0", "i1"), ("i5", "i4")]):
        row = TripletRow(f"t{n}", "dress", "train", reference, target, ["is red", "long"])
        builder.add_triplet(row, where="here")
    return builder.build({})


def task(dataset: Dataset, **stage2: Any) -> Fuse:
    settings = {"select_on": "last", "logit_scale": 2.0, "k": 1, "hard_negatives": 2, **stage2}
    pseudo = {"triplet_id": "t0", "category": "dress", "reference": "i0", "target": "i4"}
    pseudo |= {"side": "target", "replaced": "i1", "encoder": "abc"}
    values = {"similarity": 0.9, "rank": 0, "score": 0.8}
    texts = ["Is red and long", "Long and is red", "Is red", "Long"]
    return Fuse(
        Echo(),
        dataset,
        pa.Table.from_pylist([pseudo | values], schema=PSEUDO_TRIPLET),
        Features.of(IDS, features()),
        Features.of(texts, torch.ones(4, 2)),
        Config.model_validate({"stage2": settings}),
        neighbours=ALL,
    )


def features() -> torch.Tensor:
    """Return features (8, 2) of angles 0, 10, 20 ... degrees, of length 3."""
    angle = torch.deg2rad(10.0 * torch.arange(8))
    return 3 * torch.stack([angle.cos(), angle.sin()], dim=1)


def whole(made: Fuse, epoch: int) -> FeatureTriplets:
    (batch,) = made.batches(epoch, [np.arange(made.count(epoch))])
    return batch


def cos(degrees: float) -> float:
    return float(np.cos(np.deg2rad(degrees)))


def test_the_loss_of_originals_is_the_one_computed_by_hand(dataset: Dataset) -> None:
    made = task(dataset)
    batch = whole(made, 0)
    assert batch.hard is not None
    assert batch.hard.tolist() == [[4, 2], [1, 3]]
    # Query i0 at 0 degrees looks for i1 at 10; in the batch is i4 at 40; hard are i4 and i2 at 20.
    first = [2 * cos(10), 2 * cos(40), 2 * cos(40), 2 * cos(20)]
    # Query i5 at 50 looks for i4 at 40; in the batch is i1 at 10; hard are i1 and i3 at 30.
    second = [2 * cos(10), 2 * cos(40), 2 * cos(40), 2 * cos(20)]
    each = [np.log(np.exp(logits).sum()) - logits[0] for logits in (first, second)]
    found = float(made.loss(made.module, batch))
    assert found == pytest.approx(np.mean(each), rel=1e-6)
    without = task(dataset, hard_negatives=0)
    assert whole(without, 0).hard is None
    assert float(without.loss(without.module, whole(without, 0))) < found - 0.3


def test_the_original_target_of_a_pseudo_triplet_is_none_of_its_negatives(dataset: Dataset) -> None:
    made = task(dataset)
    batch = whole(made, 1)
    assert batch.hard is not None
    assert batch.hard.tolist() == [[-1, 3]]  # i1, for which it stands in, is right
    logits = [2 * cos(40), 2 * cos(30)]
    expected = np.log(np.exp(logits).sum()) - logits[0]
    assert float(made.loss(made.module, batch)) == pytest.approx(expected, rel=1e-6)


def test_soft_targets_give_hard_negatives_no_share(dataset: Dataset) -> None:
    made = task(dataset, soft_targets=0.3)
    batch = whole(made, 0)
    logits = np.array(
        [
            [2 * cos(10), 2 * cos(40), 2 * cos(40), 2 * cos(20)],
            [2 * cos(40), 2 * cos(10), 2 * cos(40), 2 * cos(20)],
        ]
    )
    alike = np.exp(2 * np.array([cos(0), cos(30)]))
    near, far = 0.3 * alike / alike.sum()
    share = np.array([[0.7 + near, far, 0, 0], [far, 0.7 + near, 0, 0]])
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(share * logs).sum(1).mean()
    assert float(made.loss(made.module, batch)) == pytest.approx(expected, rel=1e-6)


def with_own(dataset: Dataset, **columns: list[Any]) -> Dataset:
    """Return the data set with other columns of its triplets."""
    rows = [
        row | {name: values[n] for name, values in columns.items()}
        for n, row in enumerate(dataset.triplets.to_pylist())
    ]
    return replace(dataset, triplets=pa.Table.from_pylist(rows, schema=dataset.triplets.schema))


def test_negatives_that_a_triplet_names_come_before_mined_ones_and_into_the_loss(
    dataset: Dataset,
) -> None:
    own = with_own(dataset, negatives=[["i3", "i1", "gone"], None])
    batch = whole(task(own), 0)
    assert batch.hard is not None
    assert batch.hard.tolist() == [[3, -1, -1, 4, 2], [-1, -1, -1, 1, 3]]  # i1 is right
    made = task(own, hard_negatives=0)
    first = [2 * cos(10), 2 * cos(40), 2 * cos(30)]
    second = [2 * cos(10), 2 * cos(40)]
    each = [np.log(np.exp(logits).sum()) - logits[0] for logits in (first, second)]
    assert float(made.loss(made.module, whole(made, 0))) == pytest.approx(np.mean(each), rel=1e-6)


def test_a_triplet_counts_its_weight_in_the_loss_and_so_do_pseudo_triplets_of_it(
    dataset: Dataset,
) -> None:
    plain, own = (
        task(data, hard_negatives=0) for data in (dataset, with_own(dataset, weight=[3.0, None]))
    )
    first, second = (2 * cos(10), 2 * cos(40))
    each = [np.log(np.exp(logits).sum()) - logits[0] for logits in [(first, second)] * 2]
    losses = [float(made.loss(made.module, whole(made, 0))) for made in (plain, own)]
    assert losses == pytest.approx([np.mean(each), (3 * each[0] + each[1]) / 2], rel=1e-6)
    weights = [whole(made, 1).weight for made in (own, task(dataset))]
    assert weights[0] is not None
    assert (weights[0].tolist(), weights[1]) == ([3.0], None)
    by_score = whole(task(with_own(dataset, weight=[3.0, None]), pseudo_weight="score"), 1)
    assert by_score.weight is not None
    assert by_score.weight.tolist() == [3.0]  # the only score is at or below itself


def test_a_head_without_such_a_loss_refuses_triplets_that_name_negatives(dataset: Dataset) -> None:
    config = Config.model_validate({"stage2": {"head": "dcnet"}})
    check_hard_negatives(config, dataset.triplets)
    named = with_own(dataset, negatives=[["i3"], None]).triplets
    with pytest.raises(ConfigError, match="triplets that name negatives"):
        check_hard_negatives(config, named)


@pytest.mark.parametrize("name", fusion.names())
def test_a_head_takes_hard_negatives_or_is_refused(name: str) -> None:
    head = fusion.head_class(name)
    config = Config.model_validate({"stage2": {"head": name, "hard_negatives": 2}})
    if name in ("dcnet", "lincir", "val"):
        with pytest.raises(ConfigError, match=rf"the loss of the head {name} takes no hard neg"):
            new_head(config, 8)
    else:
        assert head.takes_hard_negatives() or not head.trains


def test_more_hard_negatives_than_neighbours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"hard_negatives 9 is greater than mine\.neighbours 8"):
        Config.model_validate(
            {"mine": {"neighbours": 8}, "stage2": {"hard_negatives": 9}},
        )
