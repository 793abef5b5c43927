"""The flat search: whatever the device rounds, the table is the oracle's."""

import hashlib
import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycd import mine
from raycd.config import MineConfig
from raycd.mine import search as searching
from raycd.mine.search import Shard, decode, search


def features_of(kind: str) -> NDArray[np.float32]:
    """Return 1,500 features.

    `ties`: similarities are often equal. `near-ties`: all images are alike. `halves`: every second
    similarity lies in the middle of two decimals. `equal`: 1,200 images are one.
    """
    rng = np.random.default_rng(7)
    if kind == "near-ties":
        return (rng.normal(size=96) + 1e-3 * rng.normal(size=(1500, 96))).astype(np.float32)
    if kind == "ties":
        return rng.integers(0, 3, (1500, 12)).astype(np.float32)
    if kind == "halves":
        return rng.choice(np.array([-1, 1], np.float32), (1500, 256))
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
@pytest.mark.parametrize("kind", ["smooth", "ties", "near-ties", "halves", "equal"])
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

    def wrong(query: Tensor, images: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        sign = torch.randint(0, 2, (len(images),), generator=torch.manual_seed(0)) * 2 - 1
        score = query @ images.T + 0.99 * sign * searching.margin(query.shape[1], "cpu")
        best, position = score.topk(depth)
        return best, position

    monkeypatch.setattr(searching, "nearest", wrong)
    assert mined(kind, -1).equals(expected, check_metadata=True)


@pytest.mark.parametrize("kind", ["smooth", "ties", "near-ties", "equal"])
def test_products_as_tf32_may_round_them_change_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten bits of each factor are kept, the others cut off: the worst that a GPU may do."""
    expected, on_gpu = mined(kind, -1), searching.margin(640, "cuda")
    worst = []

    def cut(query: Tensor, images: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        one, other = (
            (e.view(torch.int32) & -(1 << 13)).view(torch.float32) for e in (query, images)
        )
        worst.append(float((one @ other.T - query.double() @ images.double().T).abs().max()))
        return searching.by_blocks(one, other, depth)

    monkeypatch.setattr(searching, "nearest", cut)
    monkeypatch.setattr(searching, "margin", lambda *_: on_gpu)
    assert mined(kind, -1).equals(expected, check_metadata=True)
    assert 1e-4 < max(worst) < on_gpu


@pytest.mark.parametrize("kind", ["near-ties", "equal"])
def test_more_are_proposed_to_few_queries_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, propose, sizes = mined(kind, -1), searching.nearest, list[int]()

    def noted(query: Tensor, images: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        sizes.append(len(query) * depth if depth > 100 else 0)
        return propose(query, images, depth)

    monkeypatch.setattr(searching, "nearest", noted)
    monkeypatch.setattr(searching, "DEEPER", 2)
    monkeypatch.setattr(searching, "_MOST", 4000)
    monkeypatch.setattr(searching, "_PAIRS", {"cpu": 50})
    assert mined(kind, -1).equals(expected, check_metadata=True)
    assert 1000 < max(sizes) <= 4000


@pytest.mark.parametrize("block", [40, 700, 1500])
def test_torch_proposes_what_faiss_does(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so on GPUs, some images after the other."""
    expected = mined("smooth", -1)
    monkeypatch.setattr(searching, "BLOCK", block)
    images = torch.from_numpy(features_of("smooth"))
    found, others = (
        way(images[:9], images, 30) for way in (searching.by_blocks, searching.nearest)
    )
    assert found[1].equal(others[1])
    torch.testing.assert_close(found[0], others[0])
    monkeypatch.setattr(searching, "nearest", searching.by_blocks)
    assert mined("smooth", -1).equals(expected, check_metadata=True)


def test_a_process_that_chose_rougher_products_gets_the_same_table() -> None:
    """On a processor with bfloat16 products "medium" means them."""
    expected = mined("near-ties", -1)
    torch.set_float32_matmul_precision("medium")
    try:
        assert mined("near-ties", -1).equals(expected, check_metadata=True)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_scores_lie_within_the_margin() -> None:
    rng = np.random.default_rng(0)
    for dim in (1, 7, 640, 4096):
        one, other = (torch.from_numpy(np.abs(rng.normal(size=(64, dim)))) for _ in range(2))
        one, other = (x.div(x.norm(dim=1, keepdim=True)).float() for x in (one, other))
        score, position = searching.nearest(one, other, 64)
        exact = (one.double() @ other.double().T).gather(1, position)
        assert (score - exact).abs().max() < searching.margin(dim, "cpu")


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
