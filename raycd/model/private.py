"""Private interfaces of torch that raycd cannot do without, all in this file.

They may change with any release: after an upgrade of torch (2.15), check this file. Each says why
it is needed and what would make it superfluous.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compile_error() -> type[Exception]:
    """Return what torch.compile raises where a function cannot be compiled.

    Superfluous where torch.compiler names it.
    """
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


def onednn_product(query_BD: Tensor, tile_TD: Tensor) -> Tensor | None:
    """Return oneDNN's product (B, T) of float32 matrices on a CPU, None where torch lacks it.

    It is what torch's compiler calls, a fifth faster than MKL's on AMD's CPUs. Superfluous where
    torch chooses the faster of the two itself.
    """
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if linear is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's
        return None
    score_BT: Tensor = linear(query_BD, tile_TD, None, "none", [], "")
    return score_BT
