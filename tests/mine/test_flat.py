"""The flat search: whatever the device rounds, the table is the oracle's."""

import hashlib
import itertools
import subprocess
import sys

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


# What mining by FAISS's heaps gave, before it was torch's
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
    expected, product = mined(kind, -1), searching.product

    def wrong(query: Tensor, block: Tensor) -> Tensor:
        sign = torch.randint(0, 2, (len(block),), generator=torch.manual_seed(0)) * 2 - 1
        return product(query, block) + 0.99 * sign * searching.margin(query.shape[1], "cpu")

    monkeypatch.setattr(searching, "product", wrong)
    assert mined(kind, -1).equals(expected, check_metadata=True)


@pytest.mark.parametrize("kind", ["smooth", "ties", "near-ties", "equal"])
def test_products_as_tf32_may_round_them_change_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten bits of each factor are kept, the others cut off: the worst that a GPU may do."""
    expected, on_gpu = mined(kind, -1), searching.margin(640, "cuda")
    worst = []

    def cut(query: Tensor, block: Tensor) -> Tensor:
        few = [(each.view(torch.int32) & -(1 << 13)).view(torch.float32) for each in (query, block)]
        score = few[0] @ few[1].T
        worst.append(float((score - query.double() @ block.double().T).abs().max()))
        return score

    monkeypatch.setattr(searching, "product", cut)
    monkeypatch.setattr(searching, "margin", lambda *_: on_gpu)
    assert mined(kind, -1).equals(expected, check_metadata=True)
    assert 1e-4 < max(worst) < on_gpu


@pytest.mark.parametrize("merged", [1000, pytest.param(1 << 20, marks=pytest.mark.slow)])
def test_so_many_images_are_measured_at_once_whatever_is_kept_of_a_query(
    merged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, join, most = mined("equal", -1), torch.cat, list[int]()

    def noted(parts: list[Tensor], dim: int = 0) -> Tensor:
        most.extend(len(part) for part in parts if part.dtype == torch.float64)
        return join(parts, dim)

    monkeypatch.setattr(torch, "cat", noted)
    monkeypatch.setattr(searching, "_PAIRS", {"cpu": 300})
    monkeypatch.setattr(searching, "_MERGED", merged)
    assert mined("equal", -1).equals(expected, check_metadata=True)
    assert max(most) == 300


@pytest.mark.parametrize(
    "kind", ["smooth", "ties", "near-ties", pytest.param("equal", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("block", "group"), [(96, 4), (1500, 2), (64, 64)])
def test_the_table_does_not_depend_on_how_many_images_are_scored_at_once(
    kind: str, block: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a block of 1,500 a group's best score stands for two images, of which a few are left."""
    expected = mined(kind, -1), mined(kind, 0.5)
    monkeypatch.setattr(searching, "BLOCK", block)
    monkeypatch.setattr(searching, "_GROUP", group)
    for floor, table in zip((-1, 0.5), expected, strict=True):
        assert mined(kind, floor).equals(table, check_metadata=True)


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
        score = searching.product(one, other)
        assert (score - one.double() @ other.double().T).abs().max() < searching.margin(dim, "cpu")


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


def test_a_flat_search_needs_no_faiss() -> None:
    script = """
import sys
import raycd  # which looks what is installed
sys.modules["faiss"] = None  # importing it fails
import numpy as np
from raycd import mine
from raycd.config import MineConfig
every = np.arange(3, dtype=np.int32)
found = mine.find_neighbours(np.eye(3, dtype=np.float32), [mine.Pool("", every, every)],
                             MineConfig(floor=-1))
assert found["neighbours"].to_pylist() == [[1, 2], [0, 2], [0, 1]]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
