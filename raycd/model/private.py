"""Private interfaces of torch that raycd cannot do without, all in this file.

They may change with any release: after an upgrade of torch (2.15), check this file. Each says why
it is needed and what would make it superfluous.
"""

from __future__ import annotations


def compile_error() -> type[Exception]:
    """Return what torch.compile raises where a function cannot be compiled.

    Superfluous where torch.compiler names it.
    """
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException
