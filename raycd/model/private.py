"""Private interfaces of torch that raycd cannot do without, all in this file.

They may change with any release: after an upgrade of torch (2.15), check this file. Each says why
it is needed and what would make it superfluous.
"""

from __future__ import annotations

from contextlib import AbstractContextManager


def compile_error() -> type[Exception]:
    """Return what torch.compile raises where a function cannot be compiled.

    Superfluous where torch.compiler names it.
    """
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


def backward_at_once() -> AbstractContextManager[None]:
    """Return a context in which torch.compile compiles a backward pass with its forward pass.

    Else it does so in `loss.backward()`, where nothing can run uncompiled instead. Superfluous
    where torch.compile has an option for it.
    """
    from torch._functorch import config

    found: AbstractContextManager[None] = config.patch(force_non_lazy_backward_lowering=True)
    return found
