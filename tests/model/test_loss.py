import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from raycd.distributed import gather, rank, world_size
from raycd.model.fusion.batch_norm import BatchNorm
from raycd.model.loss import batch_classification_loss
from tests.two_workers import run_two

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]


def loss(
    query: list[list[float]], target: list[list[float]], numbers: list[int], scale: float
) -> float:
    return float(
        batch_classification_loss(
            torch.tensor(query), torch.tensor(target), torch.tensor(numbers), logit_scale=scale
        )
    )


def test_loss_is_the_mean_cross_entropy_of_scaled_cosines() -> None:
    # Cosines of query 0: 0.6 and 0.8; of query 1: 0 and 1; logit scale 10.
    expected = (
        math.log(1 + math.exp(10 * (0.8 - 0.6))) + math.log(1 + math.exp(10 * (0.0 - 1.0)))
    ) / 2
    assert loss([[0.6, 0.8], NORTH], [EAST, NORTH], [0, 1], 10.0) == pytest.approx(
        expected, rel=1e-5
    )
    assert expected == pytest.approx(1.0634867, rel=1e-6)


def test_lengths_of_features_do_not_matter() -> None:
    assert loss([[6.0, 8.0], [0.0, 0.5]], [[3.0, 0.0], [0.0, 7.0]], [0, 1], 10.0) == pytest.approx(
        1.0634867, rel=1e-5
    )


def test_the_logit_scale_multiplies_cosines() -> None:
    for scale in (1.0, 100.0):
        found = loss([EAST, EAST], [EAST, NORTH], [0, 1], scale)
        assert found == pytest.approx(
            (math.log1p(math.exp(-scale)) + math.log1p(math.exp(scale))) / 2, rel=1e-5
        )


def test_a_triplet_of_the_same_target_is_no_negative() -> None:
    # Queries 0 and 2 share target 5: each sees only its own copy and target 1.
    query, target = [[0.6, 0.8], NORTH, [0.8, 0.6]], [EAST, NORTH, EAST]
    expected = math.log1p(math.exp(2)) + math.log1p(2 * math.exp(-10)) + math.log1p(math.exp(-2))
    assert loss(query, target, [5, 1, 5], 10.0) == pytest.approx(expected / 3, rel=1e-5)
    apart = math.log(2 + math.exp(2)) + math.log1p(2 * math.exp(-10)) + math.log(2 + math.exp(-2))
    assert loss(query, target, [5, 1, 6], 10.0) == pytest.approx(apart / 3, rel=1e-5)


def test_a_further_target_of_a_query_is_no_negative_of_it() -> None:
    # Target 1 is right for query 0, too; for query 1 target 0 stays wrong.
    query, target = torch.tensor([[0.6, 0.8], [0.8, 0.6]]), torch.tensor([EAST, NORTH])
    right = torch.tensor([[0, 1], [-1, -1]])
    found = batch_classification_loss(query, target, torch.tensor([0, 1]), 10.0, right)
    expected = (0.0 + math.log1p(math.exp(10 * (0.8 - 0.6)))) / 2
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_weighted_loss_is_the_sum_of_weighted_losses_over_their_number() -> None:
    query, target = torch.tensor([[0.6, 0.8], NORTH]), torch.tensor([EAST, NORTH])
    weights = torch.tensor([0.5, 0.25])
    found = batch_classification_loss(query, target, torch.arange(2), 10.0, weight_B=weights)
    expected = (0.5 * math.log1p(math.exp(2)) + 0.25 * math.log1p(math.exp(-10))) / 2
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_soft_targets_share_a_part_of_the_probability_by_likeness() -> None:
    # Of target 0 at scale 2: cosines 1, 0.6, and 1 of the third, which is the same image.
    query = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    target = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
    numbers = torch.tensor([4, 5, 4])
    found = batch_classification_loss(query, target, numbers, 2.0, soft=0.3)
    alike = math.exp(1.2) / (math.exp(2.0) + math.exp(1.2))
    of_0 = (1 - 0.3 * alike) * (math.log(1 + math.exp(1.6)) - 0.0)  # logits 0 and 1.6
    of_0 += 0.3 * alike * (math.log(1 + math.exp(1.6)) - 1.6)
    of_2 = (1 - 0.3 * alike) * math.log(1 + math.exp(1.2 - 2.0))  # logits 2 and 1.2
    of_2 += 0.3 * alike * (math.log(1 + math.exp(1.2 - 2.0)) + 0.8)
    every = 2 * math.exp(2.0) + math.exp(1.2)  # of query 1, to whom 0 and 2 are two candidates
    alike_1 = math.exp(2.0) / (math.exp(2.0) + 2 * math.exp(1.2))  # its own, cosine 1
    own_1 = 0.7 + 0.3 * alike_1
    of_1 = own_1 * (math.log(every) - 1.2) + (1 - own_1) * (math.log(every) - 2.0)
    assert float(found) == pytest.approx((of_0 + of_1 + of_2) / 3, rel=1e-5)


def test_a_batch_of_one_target_has_no_loss() -> None:
    assert loss([EAST, NORTH], [EAST, EAST], [3, 3], 100.0) == 0.0


def test_a_single_process_is_the_first_of_one() -> None:
    rows = torch.ones(2, 3)
    assert (rank(), world_size()) == (0, 1)
    assert gather(rows) is rows


# ---- several workers
# -----------------------------------------------------------------------------------------------

NUMBERS = torch.tensor([0, 1, 2, 3, 0, 4, 3, 3])  # targets 0 and 3 stand on both workers
WEIGHTS = torch.linspace(0.1, 1.0, 8)
RIGHT = torch.tensor([[0, 4]] + [[-1, -1]] * 6 + [[3, 1]])  # each with one of the other worker


class Towers(nn.Module):
    """A query tower with a batch norm and a target tower; both train."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.query = nn.Sequential(
            nn.Linear(6, 5, bias=False), BatchNorm(5), nn.ReLU(), nn.Linear(5, 4)
        )
        self.target = nn.Linear(6, 4)

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.query(rows), self.target(rows.flip(-1))


def rows_of_all() -> torch.Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(3))


def step(towers: Towers, module: nn.Module, own: slice) -> tuple[torch.Tensor, list[torch.Tensor]]:
    query, target = module(rows_of_all()[own])
    value = batch_classification_loss(
        query, target, NUMBERS[own], 20.0, RIGHT[own], weight_B=WEIGHTS[own], soft=0.2
    )
    value.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
    return value.detach(), [
        parameter.grad for parameter in towers.parameters() if parameter.grad is not None
    ]


def worker(number: int, folder: str) -> None:
    own = slice(number * 4, (number + 1) * 4)
    found: dict[str, object] = {"gathered": gather(torch.arange(2.0) + 10 * number)}
    for name, wrap in (("ddp", DistributedDataParallel), ("plain", lambda module: module)):
        towers = Towers()
        value, gradients = step(towers, wrap(towers), own)
        if name == "plain":
            for gradient in gradients:
                distributed.all_reduce(gradient)
                gradient /= 2
        distributed.all_reduce(value)
        found[name] = (value / 2, gradients)
    torch.save(found, Path(folder) / f"{number}.pt")


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("workers")
    run_two(worker, str(folder))
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


@pytest.mark.parametrize("way", ["ddp", "plain"])
def test_two_workers_of_half_a_batch_have_the_loss_and_gradient_of_one(
    two_workers: list[dict[str, Any]], way: str
) -> None:
    towers = Towers()
    value, gradients = step(towers, towers, slice(0, 8))
    assert len(gradients) == 7
    for found in two_workers:
        their_value, their_gradients = found[way]
        torch.testing.assert_close(their_value, value)
        for theirs, ours in zip(their_gradients, gradients, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)


def test_rows_are_gathered_in_the_order_of_the_workers(
    two_workers: list[dict[str, torch.Tensor]],
) -> None:
    for found in two_workers:
        assert found["gathered"].tolist() == [0.0, 1.0, 10.0, 11.0]
