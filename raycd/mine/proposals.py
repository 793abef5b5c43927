"""Which images a flat search measures: those of most scores, by products that may be rough.

fp32 is FAISS's on CPUs. tf32 is a GPU's, by torch. bf16 is torch's on CPUs that multiply it, twice
as fast as fp32 or more, among so many images that this is more than what measuring twice the
images costs. How far a score may be from the product that it stands for is known (`at_most`): so it
is known whether an image that was not proposed may count, and none is missed.

Shapes: P images of a shard, B queries of a batch, C images proposed to each.
"""

from __future__ import annotations

from typing import Any, Literal

import faiss
import numpy as np
import torch
from torch import Tensor

Arithmetic = Literal["fp32", "tf32", "bf16"]

BLOCK = 1 << 15  # images that a GPU scores at once
SMALL_BLOCK = 1 << 10  # that a thread of a CPU scores at once: they stay in its cache
LEAST_BF16 = 256  # images of a shard for each that is wanted: of fewer, measuring more costs more


def arithmetic(device: str, images: int, wanted: int) -> Arithmetic:
    """Return in what so many images are scored on a device, where so many neighbours are wanted."""
    if device != "cpu":
        return "tf32"
    knows = torch.cpu.get_capabilities()
    has_bf16 = knows.get("amx_bf16") or knows.get("avx512_bf16")
    return "bf16" if has_bf16 and images >= LEAST_BF16 * wanted else "fp32"


def proposed(wanted: int, kind: Arithmetic) -> int:
    """Return how many images are proposed where so many are wanted.

    The image itself may be among them, and others come as near as a score is wrong: more, the more
    are wanted, for these lie closer together.
    """
    return wanted + 8 + wanted // {"fp32": 32, "tf32": 2, "bf16": 1}[kind]


def nearest(
    query_BD: Tensor, unit_PD: Tensor, depth: int, kind: Arithmetic
) -> tuple[Tensor, Tensor]:
    """Return scores (B, C), descending, and positions (B, C) of the `depth` images of most."""
    if kind == "tf32":
        return by_blocks(query_BD, unit_PD, depth)
    if kind == "bf16":
        return in_bf16(query_BD, unit_PD, depth)
    found = faiss.knn(query_BD.numpy(), unit_PD.numpy(), depth, metric=faiss.METRIC_INNER_PRODUCT)
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


def by_blocks(query_BD: Tensor, unit_PD: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return what `nearest` does, by torch alone."""
    best_BC = query_BD.new_empty((len(query_BD), 0))
    position_BC = best_BC.long()
    for start in range(0, len(unit_PD), BLOCK):
        score_BP = query_BD @ unit_PD[start : start + BLOCK].T
        score_BC, own_BC = score_BP.topk(min(depth, score_BP.shape[1]))
        best_BC, position_BC = (
            torch.cat([best_BC, score_BC], 1),
            torch.cat([position_BC, own_BC + start], 1),
        )
        best_BC, at_BC = best_BC.topk(min(depth, best_BC.shape[1]))
        position_BC = position_BC.gather(1, at_BC)
    return best_BC, position_BC


def in_bf16(query_BD: Tensor, unit_PD: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return what `nearest` does: products by torch, FAISS's heaps keep the most of them."""
    best_BC = np.empty((len(query_BD), depth), np.float32)
    position_BC = np.empty((len(query_BD), depth), np.int64)
    heaps: Any = faiss.float_minheap_array_t()
    heaps.nh, heaps.k = best_BC.shape
    heaps.val, heaps.ids = faiss.swig_ptr(best_BC), faiss.swig_ptr(position_BC)
    heaps.heapify()
    rough_BD = query_BD.bfloat16()
    for start in range(0, len(unit_PD), SMALL_BLOCK):
        score_BP = (rough_BD @ unit_PD[start : start + SMALL_BLOCK].bfloat16().T).float()
        heaps.addn(score_BP.shape[1], faiss.swig_ptr(score_BP.numpy()), start, 0, len(query_BD))
    heaps.reorder()
    return torch.from_numpy(best_BC), torch.from_numpy(position_BC)


def cut_off(unit_ND: Tensor) -> float:
    """Return the length of the longest vector that bf16 cuts off one of these."""
    parts = (part - part.bfloat16().float() for part in torch.split(unit_ND, SMALL_BLOCK))
    lengths = (torch.linalg.vector_norm(part, dim=1) for part in parts if len(part))
    return max((float(length_N.max()) for length_N in lengths), default=0.0)


def at_most(score_B: Tensor, dim: int, kind: Arithmetic, cut: float = 0.0) -> Tensor:
    """Return the most (B,) that a product can be whose score is not above this one.

    Of vectors of length 1, sum |q_i p_i| <= |q| |p| <= 1 + 2^-21, their own rounding included. In
    float32, in whatever order and fused or not, a product of D numbers is wrong by at most
    D u / (1 - D u) of that sum, u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms,
    3.1): below 2 D u, which is 7.6e-5 for D = 640.

    TF32 keeps 10 bits of each factor, at worst by cutting off the others: 2^-10 of it. A product is
    then wrong by 2 x 2^-10 + 2^-20 of itself, and exact in float32. Tensor cores cut sums off
    instead of rounding them, after shifting all addends to the largest (Fasi et al., Numerical
    behavior of NVIDIA tensor cores, 2021): 2 u each, with a factor of two to spare 4 D u. Together
    2.1e-3 for D = 640. Cards without TF32 compute in float32.

    bf16 cuts a vector off each of the two, whose lengths (`cut_off`) together are `cut`: by Cauchy
    and Schwarz the product is wrong by that much at most, some 3.4e-3 (the fiftieth more is for the
    rounding of all that). Sums are in float32, 4 D u as above; their result is rounded to bf16, by
    2^-8 of it.
    """
    if kind == "fp32":
        return score_B + dim * 2.0**-23
    if kind == "tf32":
        return score_B + (2.0**-9 + 2.0**-19 + dim * 2.0**-22)
    return score_B + score_B.abs() * 2.0**-8 + (1.02 * cut + dim * 2.0**-22)
