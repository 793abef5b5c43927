"""CLVC-Net, comprehensive linguistic-visual composition (Wen et al., SIGIR 2021), on frozen CLIP.

X the last map, E the states of the text's tokens, P = H W positions:

    local    K = conv1x1 X,  s_p = sum_l softmax_l(E_l K_p / sqrt P) E_l,  U = [K; s]
             F = gamma(U) X + beta(U),  f = FC GeM_p F
    global   K = conv1x1 X,  v_l = sum_p softmax_p(E_l K_p / 4) K_p,  U = [E; v]
             G = gamma(U) v + beta(U),  g = FC GeM_l G
    query    L2(L2 f + L2 g)
    loss     of f and of g: eq. 4 with a learned scale (from 10) + MSE of its unit query to the
             other's + KL(the other's similarities || its own, scale 10); of f + MSE(F, target's X)

gamma and beta are inception blocks, of 3 x 3 convolutions on maps and of 3 on tokens; GeM's p is
learned, from 3. All terms have weight 1. What a network learns from the other is detached.

Deviates: both compositions share one frozen encoder, CLIP, where the paper has two of ResNet-50 and
LSTM; targets are pooled CLIP features, the same for both, so the term that draws the two networks'
targets together is 0; both learn in the same step, not in turn.

Shapes: B batch, C channels, H x W positions, L tokens, E their size, D feature size, N targets.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from raycd.distributed import gather
from raycd.model.fusion.head import Head, HeadBatch
from raycd.model.fusion.positions import Gem, masked_softmax, unit_sum
from raycd.model.fusion.registry import HeadConfig
from raycd.model.loss import full_precision

LOCAL_SHARES = (5, 4, 4, 3)  # of 16: the paper's 640, 512, 512 and 384 of 2048 channels
GLOBAL_SHARES = (6, 4, 4, 2)  # 384, 256, 256 and 128 of 1024
THREES = (0, 1, 2, 0)  # convolutions of 3 in each branch; the last one averages before
GLOBAL_TEMPERATURE = 4.0
SCALE = 10.0


class Inception(nn.Module):
    """Branches 1; 1, 3; 1, 3, 3; average 3, 1 side by side, over positions or tokens."""

    def __init__(
        self,
        conv: type[nn.Conv2d] | type[nn.Conv1d],
        given: int,
        made: int,
        shares: tuple[int, ...],
    ) -> None:
        super().__init__()
        sizes = [made * share // 16 for share in shares[:-1]]
        self.branches = nn.ModuleList(
            nn.Sequential(
                conv(given, size, 1), *(conv(size, size, 3, padding=1) for _ in range(threes))
            )
            for size, threes in zip([*sizes, made - sum(sizes)], THREES, strict=True)
        )

    def forward(self, rows: torch.Tensor, mask: torch.Tensor | float = 1.0) -> torch.Tensor:
        """Return (B, made, ...) of (B, given, ...).

        Where the mask is 0, so is everything: padding behaves as the end of the text.
        """
        average = F.avg_pool2d if rows.ndim == 4 else F.avg_pool1d
        inputs = [rows, rows, rows, average(rows, 3, 1, 1)]
        found = []
        for branch, value in zip(self.branches, inputs, strict=True):
            assert isinstance(branch, nn.Sequential)
            value = branch[0](value) * mask
            for convolution in branch[1:]:
                value = convolution(F.relu(value)) * mask
            found.append(value)
        return torch.cat(found, dim=1)


class ClvcNet(Head):
    """The local and the global composition, which teach each other."""

    needs = frozenset({"map", "tokens"})
    needs_of_target = frozenset({"map"})
    classifies = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        channels, size, dim = config.extra["map"][0], config.extra["tokens"][-1], config.dim
        self.local_key, self.global_key = (nn.Conv2d(channels, size, 1) for _ in range(2))
        self.local_gamma, self.local_beta = (
            Inception(nn.Conv2d, 2 * size, channels, LOCAL_SHARES) for _ in range(2)
        )
        self.global_gamma, self.global_beta = (
            Inception(nn.Conv1d, 2 * size, size, GLOBAL_SHARES) for _ in range(2)
        )
        self.local_pool, self.global_pool = Gem(), Gem()
        self.local_project, self.global_project = nn.Linear(channels, dim), nn.Linear(size, dim)
        self.local_scale, self.global_scale = (nn.Parameter(torch.tensor(SCALE)) for _ in range(2))

    def local(
        self, map_BCHW: torch.Tensor, tokens_BLE: torch.Tensor, mask_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return f (B, D), not normalised, and F (B, C, H, W)."""
        key_BEHW = self.local_key(map_BCHW)
        score_BLP = tokens_BLE @ key_BEHW.flatten(2) * (map_BCHW[0, 0].numel() ** -0.5)
        weight_BLP = masked_softmax(score_BLP, mask_BL[..., None], dim=1)
        said_BEHW = (tokens_BLE.transpose(1, 2) @ weight_BLP).view_as(key_BEHW)
        both = torch.cat([key_BEHW, said_BEHW], dim=1)
        composed = self.local_gamma(both) * map_BCHW + self.local_beta(both)
        return self.local_project(self.local_pool(composed.flatten(2))), composed

    def global_(
        self, map_BCHW: torch.Tensor, tokens_BLE: torch.Tensor, mask_BL: torch.Tensor
    ) -> torch.Tensor:
        """Return g (B, D), not normalised."""
        key_BEP = self.global_key(map_BCHW).flatten(2)
        weight_BLP = (tokens_BLE @ key_BEP / GLOBAL_TEMPERATURE).softmax(-1)
        mask_B1L = mask_BL[:, None].to(key_BEP.dtype)
        seen_BEL = key_BEP @ weight_BLP.transpose(1, 2) * mask_B1L
        both = torch.cat([tokens_BLE.transpose(1, 2) * mask_B1L, seen_BEL], dim=1)
        composed = self.global_gamma(both, mask_B1L) * seen_BEL + self.global_beta(both, mask_B1L)
        out: torch.Tensor = self.global_project(self.global_pool(composed, mask_BL))
        return out

    def forward(
        self,
        image_BD: torch.Tensor,
        text_BD: torch.Tensor,
        *,
        map: torch.Tensor,
        tokens: torch.Tensor,
        token_mask: torch.Tensor,
    ) -> torch.Tensor:
        """Return normalised queries (B, D) of the map (B, C, H, W) and tokens (B, L, E)."""
        local_BD, _ = self.local(map, tokens, token_mask)
        return unit_sum(local_BD, self.global_(map, tokens, token_mask))

    def training_loss(self, batch: HeadBatch, logit_scale: float) -> torch.Tensor:
        """Return the sum of both networks' losses."""
        given = tuple(batch.extra[name] for name in ("map", "tokens", "token_mask"))
        local_BD, composed = self.local(*given)
        global_BD = self.global_(*given)
        with full_precision(local_BD):
            both = F.normalize(local_BD.float(), dim=-1), F.normalize(global_BD.float(), dim=-1)
            perceptual = F.mse_loss(composed.float(), batch.target_extra["map"])
            scales = (self.local_scale, self.global_scale)
            return perceptual + sum(
                batch.classification_loss(own, scale) + mutual(own, other.detach(), batch.target_BD)
                for own, other, scale in zip(both, reversed(both), scales, strict=True)
            )


def mutual(own_BD: torch.Tensor, other_BD: torch.Tensor, target_BD: torch.Tensor) -> torch.Tensor:
    """Return what a network's unit queries learn from the other's: MSE and KL of similarities."""
    target_ND = gather(F.normalize(target_BD, dim=-1))
    own_BN, other_BN = (SCALE * query @ target_ND.T for query in (own_BD, other_BD))
    divergence = F.kl_div(
        own_BN.log_softmax(-1), other_BN.log_softmax(-1), reduction="batchmean", log_target=True
    )
    return F.mse_loss(own_BD, other_BD) + divergence


def build(config: HeadConfig) -> ClvcNet:
    """Build CLVC-Net for the map and tokens of the shapes in `config.extra`."""
    return ClvcNet(config)
