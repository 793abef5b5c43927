"""The flat search: whatever the device rounds, the table is the oracle's."""

import hashlib
import itertools
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycd import mine
from raycd.config import MineConfig
from raycd.mine import proposals
from raycd.mine import search as searching
from raycd.mine.neighbours import normalise
from raycd.mine.search import Shard, decode, search

KINDS = get_args(proposals.Arithmetic)
ALL = ["smooth", "ties", "near-ties", "halves", "equal", "rounded", "cut"]


def margin(dim: int, kind: proposals.Arithmetic) -> float:
    """Return how far a score may be from its product."""
    return float(proposals.at_most(torch.zeros(()), dim, kind))


def features_of(kind: str) -> NDArray[np.float32]:
    """Return 1,500 features.

    `ties`: similarities are often equal. `near-ties`: all images are alike. `halves`: every second
    similarity lies in the middle of two decimals. `equal`: 1,200 images are one. `rounded`: bf16
    has all their numbers, and few of their products. `cut`: it cuts the same off each number, and
    the 30 images that are one come last.
    """
    rng = np.random.default_rng(7)
    if kind == "near-ties":
        return (rng.normal(size=96) + 1e-3 * rng.normal(size=(1500, 96))).astype(np.float32)
    if kind == "ties":
        return rng.integers(0, 3, (1500, 12)).astype(np.float32)
    if kind == "halves":
        return rng.choice(np.array([-1, 1], np.float32), (1500, 256))
    if kind == "rounded":
        base = rng.choice(np.array([-1, 1], np.float32) / 32, 1024)
        return np.where(rng.random((1500, 1024)) < 0.04, -base, base)
    if kind == "cut":
        equal = np.ones((1500, 1017), np.float32)
        equal[np.arange(1470), rng.integers(0, 1017, 1470)] = -1
        return equal
    smooth = (rng.normal(size=(1500, 640)) + rng.normal(size=640)).astype(np.float32)
    if kind == "equal":
        smooth[100:1300] = smooth[0]
    return smooth


def mined(kind: str, floor: float, device: str = "cpu") -> pa.Table:
    every = np.arange(1500, dtype=np.int32)
    pools = [mine.Pool("", every, every[::3])]
    settings = MineConfig(neighbours=20, floor=floor, eps_low=0.5, s_max=1)
    return mine.find_neighbours(features_of(kind), pools, settings, device=device)


def digest(found: pa.Table) -> str:
    """Return a hash of neighbours, similarities in millionths and `truncated`."""
    whole = hashlib.sha256()
    for name in ("neighbours", "similarities"):
        lists = found[name].combine_chunks()
        whole.update(lists.offsets.to_numpy().astype("<i8").tobytes())
        whole.update(np.rint(lists.values.to_numpy() * 1e6).astype("<i8").tobytes())
    whole.update(bytes(found["truncated"].to_pylist()))
    return whole.hexdigest()[:16]


# What the first searches gave
RECORDED = {
    ("smooth", -1): "d800bd6fcdb147cf",
    ("smooth", 0.5): "9d36b3f47543f91f",
    ("near-ties", 0.5): "f98e79d4baca2b97",
    ("ties", -1): "e25cf17565df33fb",
    ("halves", -1): "7eb7c8f01c14e671",
}


@pytest.mark.parametrize(("kind", "floor"), RECORDED)
def test_the_tables_are_those_that_were_recorded(kind: str, floor: float) -> None:
    assert digest(mined(kind, floor)) == RECORDED[kind, floor]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("kind", ALL)
def test_a_gpu_gives_the_same_table(kind: str) -> None:
    for floor in (-1, 0.5):
        assert mined(kind, floor, "cuda").equals(mined(kind, floor), check_metadata=True)


def test_equal_images_are_all_compared_however_many_they_are() -> None:
    """The 1,201 equal images are each other's neighbours: the lower rows come first."""
    found = mined("equal", 0.5)
    rows = [0, *range(100, 1300)]
    for image, near in zip(
        found["image"].to_pylist(), found["neighbours"].to_pylist(), strict=True
    ):
        if image in rows:
            assert near == [row for row in rows if row != image][:20]
    assert found["truncated"].to_pylist()[40]


@pytest.mark.parametrize("kind", ["smooth", "ties", "near-ties", "equal"])
def test_scores_that_are_as_wrong_as_they_may_be_change_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of some images are all too high, and those of the others too low."""
    expected = mined(kind, -1)

    def wrong(query: Tensor, images: Tensor, depth: int, kind: str) -> tuple[Tensor, Tensor]:
        sign = torch.randint(0, 2, (len(images),), generator=torch.manual_seed(0)) * 2 - 1
        score = query @ images.T + 0.99 * sign * margin(query.shape[1], "fp32")
        best, position = score.topk(depth)
        return best, position

    monkeypatch.setattr(searching, "nearest", wrong)
    assert mined(kind, -1).equals(expected, check_metadata=True)


@pytest.mark.parametrize("kind", ["smooth", "ties", "near-ties", "equal"])
def test_products_as_tf32_may_round_them_change_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten bits of each factor are kept, the others cut off: the worst that a GPU may do."""
    expected, on_gpu = mined(kind, -1), margin(640, "tf32")
    worst = []

    def cut(query: Tensor, images: Tensor, depth: int, kind: str) -> tuple[Tensor, Tensor]:
        one, other = (
            (e.view(torch.int32) & -(1 << 13)).view(torch.float32) for e in (query, images)
        )
        worst.append(float((one @ other.T - query.double() @ images.double().T).abs().max()))
        return proposals.by_blocks(one, other, depth)

    monkeypatch.setattr(searching, "nearest", cut)
    monkeypatch.setattr(searching, "arithmetic", lambda *_: "tf32")
    assert mined(kind, -1).equals(expected, check_metadata=True)
    assert 1e-4 < max(worst) < on_gpu


@pytest.mark.parametrize("kind", ["near-ties", "equal"])
def test_more_are_proposed_to_few_queries_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, propose, sizes = mined(kind, -1), proposals.nearest, list[int]()

    def noted(query: Tensor, images: Tensor, depth: int, kind: Any) -> tuple[Tensor, Tensor]:
        sizes.append(len(query) * depth if depth > 100 else 0)
        return propose(query, images, depth, kind)

    monkeypatch.setattr(searching, "nearest", noted)
    monkeypatch.setattr(searching, "DEEPER", 2)
    monkeypatch.setattr(searching, "_MOST", 4000)
    assert mined(kind, -1).equals(expected, check_metadata=True)
    assert 1000 < max(sizes) <= 4000


@pytest.mark.parametrize("kind", ALL)
def test_several_queries_are_measured_at_once_as_one_is(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPUs take many."""
    expected = mined(kind, 0.5)
    monkeypatch.setattr(searching, "_one_by_one", searching._many_at_once)
    monkeypatch.setattr(searching, "_PAIRS", 200)
    assert mined(kind, 0.5).equals(expected, check_metadata=True)


@pytest.mark.parametrize("block", [40, 700, 1500])
def test_all_ways_propose_the_same_images(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some images after the other. Products of eighths are exact in each of them."""
    monkeypatch.setattr(proposals, "BLOCK", block)
    monkeypatch.setattr(proposals, "SMALL_BLOCK", block)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(-8, 9, (1500, 5)) / 8).float()
    queries = torch.eye(5) + 0.125
    expected = (queries @ images.T).sort(1, descending=True).values[:, :30]
    for kind in KINDS:
        score, position = proposals.nearest(queries, images, 30, kind)
        rounded = expected.bfloat16().float() if kind == "bf16" else expected
        assert score.equal(rounded), kind
        of_all = queries @ images.T
        own = (of_all.bfloat16().float() if kind == "bf16" else of_all).gather(1, position)
        assert own.equal(score), kind


@pytest.mark.parametrize("way", KINDS)
@pytest.mark.parametrize("kind", ALL)
def test_each_way_gives_the_same_table(
    kind: str, way: proposals.Arithmetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {floor: mined(kind, floor) for floor in (-1, 0.5)}
    monkeypatch.setattr(searching, "arithmetic", lambda *_: way)
    for floor, table in expected.items():
        assert mined(kind, floor).equals(table, check_metadata=True)


def test_bf16_is_given_up_where_it_is_sure_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """All images are alike: then it would be work for nothing."""
    monkeypatch.setattr(searching, "arithmetic", lambda *_: "bf16")
    propose, ways = proposals.nearest, list[str]()

    def noted(*given: Any) -> tuple[Tensor, Tensor]:
        ways.append(given[-1])
        return propose(*given)

    monkeypatch.setattr(searching, "nearest", noted)
    every = np.arange(1500, dtype=np.int32)
    for kind, times in (("smooth", 15), ("near-ties", 1)):
        ways.clear()
        unit_ND = normalise(features_of(kind), every)
        settings = MineConfig(neighbours=20, floor=-1, s_max=1, batch_size=100)
        search(every, unit_ND, [Shard(unit_ND, every)], settings, threads=1)
        assert ways.count("bf16") == times
        assert "fp32" in ways or kind == "smooth"


def test_a_process_that_chose_rougher_products_gets_the_same_table() -> None:
    """On a processor with bfloat16 products "medium" means them."""
    expected = mined("near-ties", -1)
    torch.set_float32_matmul_precision("medium")
    try:
        assert mined("near-ties", -1).equals(expected, check_metadata=True)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 7, 640, 4096])
def test_no_product_is_above_what_its_score_allows(kind: proposals.Arithmetic, dim: int) -> None:
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(np.abs(rng.normal(size=(64, dim)))) for _ in range(2))
    one, other = (x.div(x.norm(dim=1, keepdim=True)).float() for x in (one, other))
    exact = one.double() @ other.double().T
    cut = proposals.cut_off(one) + proposals.cut_off(other)
    score, position = proposals.nearest(one, other, 64, kind)
    most = proposals.at_most(score.flatten(), dim, kind, cut).view(score.shape)
    assert (exact.gather(1, position) <= most).all()
    if kind == "bf16" and dim > 1:  # and the bound is no wider than it must be
        assert (exact.gather(1, position) > score + 1e-3).any()
        assert (most - score).max() < 0.012


def test_a_similarity_in_the_middle_of_two_decimals_does_not_depend_on_the_order_of_its_sum() -> (
    None
):
    """33/128 and three times 2^-56: float64 keeps the small ones only where they meet first."""
    small = 2.0**-55
    given = set()
    for order in set(itertools.permutations([33 / 64, small, small, small, 0, 0, 0, 0])):
        image = np.array([order], np.float32)
        query = np.full((1, 8), 0.5, np.float32)
        shard = Shard(image, np.array([1], np.int32))
        rows = np.zeros(1, np.int32)
        key_QS = search(rows, query, [shard], MineConfig(floor=-1, neighbours=1, s_max=1))
        given.add(float(decode(key_QS[:, :1])[1][0, 0]))
    assert given == {0.257813}
