"""Cached gradients: contrastive batches of thousands in the memory of a few dozen.

As in GradCache (Gao et al., RepL4NLP 2021, arXiv 2101.06983): the features of the whole batch are
encoded in chunks, of which no activation is kept; the loss and its gradient by the features are
computed once; then chunk by chunk is encoded again, and its part of that gradient propagated. The
gradient is the whole batch's, for one more forward pass of what trains.

torch's checkpointing of each chunk does just this. So there is one forward and one backward pass
to DistributedDataParallel, which averages each gradient once, when all chunks have added to it; and
random states, autocast and checkpoints inside the encoder are torch's affair. The chunks of an
encoder that does not train are not encoded again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint


def encode_in_chunks(
    encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, size: int
) -> torch.Tensor:
    """Return encode(inputs) (B, D), computed from `size` rows at a time; 0: from all at once.

    `encode` treats each row by itself: batch norms must be in eval mode. `inputs` lie on the device
    of the computation, or the random state of that device is not restored.
    """
    if not size:
        return encode(inputs)
    parts = [checkpoint(encode, part, use_reentrant=False) for part in torch.split(inputs, size)]
    return torch.cat(parts)
