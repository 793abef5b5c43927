"""Batch normalisation over the batch of all training workers."""

from __future__ import annotations

import torch
from torch import nn

from raycd.distributed import gather, own_rows


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` of rows (B, D), whose batch is that of all workers, as of a single one.

    torch's SyncBatchNorm does this on GPUs alone. A batch of one row has no variance: it is
    normalised by the running statistics, and leaves them as they are.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise rows (B, D). All workers call it together in training."""
        input = input.float()  # autocast would not
        if not self.training:
            return super().forward(input)
        rows = gather(input)
        if len(rows) == 1:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(rows)[own_rows(len(input), input.device)]
