"""Small heads that need maps and tokens, with random weights, and layers of their formulas."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from raycd.model import fusion
from raycd.model.fusion import Head, HeadBatch

D, L, E = 6, 5, 4
SHAPES = {"map": [8, 2, 3], "middle": [4, 4, 6], "tokens": [L, E]}
HEADS = [name for name in fusion.names() if fusion.head_class(name).needs & SHAPES.keys()]


def config(name: str, dropout: float = 0.0) -> fusion.HeadConfig:
    needs = fusion.head_class(name).needs
    extra = {need: SHAPES[need] for need in sorted(needs)}
    return fusion.HeadConfig(name, D, dropout=dropout, extra=extra)


def head(name: str, dropout: float = 0.0) -> Any:
    """Return a head all of whose weights are random: none is a zero or one that hides a part."""
    torch.manual_seed(0)
    made = fusion.create(config(name, dropout)).eval()
    for parameter in made.parameters():
        nn.init.uniform_(parameter, 0.1, 0.6) if parameter.ndim == 0 else nn.init.normal_(
            parameter, std=0.5
        )
    return made


def batch(name: str, rows: int = 4, seed: int = 1) -> HeadBatch:
    """Return triplets of random features; the second text has fewer tokens, two share a target."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator)

    image_BD, text_BD, target_BD = draw(D), draw(D), draw(D)
    mask = torch.ones(rows, L, dtype=torch.bool)
    mask[1, 3:] = False
    tokens = draw(L, E) * mask[..., None]
    maps = {need: draw(*SHAPES[need]) for need in ("map", "middle")}
    of_target = {need: draw(*SHAPES[need]) for need in ("map", "middle")}
    made = fusion.head_class(name)
    extra = {need: value for need, value in maps.items() if need in made.needs}
    if "tokens" in made.needs:
        extra |= {"tokens": tokens, "token_mask": mask}
    numbers = torch.arange(rows)
    if rows > 3:
        numbers[3] = 0
        target_BD[3] = target_BD[0]
    return HeadBatch(
        image_BD,
        text_BD,
        target_BD,
        numbers,
        extra,
        {need: of_target[need] for need in made.needs_of_target},
    )


def query(made: Head, given: HeadBatch) -> torch.Tensor:
    found: torch.Tensor = made(given.image_BD, given.text_BD, **given.extra)
    return found


def unit(rows: torch.Tensor) -> torch.Tensor:
    return F.normalize(rows, dim=-1)


def conv(layer: Any, rows: torch.Tensor) -> torch.Tensor:
    """Apply a 1 x 1 convolution to the channels of one position."""
    out: torch.Tensor = layer.weight[:, :, 0, 0] @ rows
    return out if layer.bias is None else out + layer.bias


def gem(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return the generalised mean over the second axis."""
    found: torch.Tensor = rows.clamp(min=1e-6).pow(module.p).mean(1).pow(1 / module.p)
    return found
