"""The size of encoders, computed from open_clip's configurations without any weights.

python -m raycd.model.sizes ViT-B-16-SigLIP2 ViT-H-14
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raycd.config import EncoderConfig
from raycd.data.preprocess import Preprocess
from raycd.errors import RaycdError
from raycd.model import architecture
from raycd.model.encoder import NOT_OF_FEATURES
from raycd.model.tokenizer import context_length

FLOAT32 = 4  # bytes
STATES = 4  # numbers kept for each parameter that AdamW trains: itself, its gradient, two moments


@dataclass(frozen=True)
class Size:
    """What an encoder needs."""

    name: str
    parameters: int
    trained: int
    """Parameters that stage 1 trains, both encoders."""
    dim: int
    context_length: int
    preprocess: Preprocess

    @property
    def weights_gib(self) -> float:
        """Return the memory of the weights in fp32, GiB: what embedding and serving need."""
        return self.parameters * FLOAT32 / 2**30

    @property
    def training_gib(self) -> float:
        """Return the memory of stage 1 before any activation, GiB, in fp32 as in bf16."""
        rest = self.parameters - self.trained
        return (rest + self.trained * STATES) * FLOAT32 / 2**30

    def row(self) -> str:
        """Return a row of a Markdown table."""
        height, width = self.preprocess.size
        resize = f"{self.preprocess.resize_mode}, {self.preprocess.interpolation}"
        return (
            f"| {self.name} | {self.parameters / 1e6:,.1f} M | {self.dim} | {height} x {width}, "
            f"{resize} | {self.context_length} | {self.weights_gib:.2f} GiB | "
            f"{self.training_gib:.2f} GiB |"
        )


HEAD = (
    "| encoder | parameters | D | pixels | tokens | weights, fp32 | stage 1 |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def size(name: str, configs: str = "") -> Size:
    """Return the size of an encoder of open_clip. Raises WeightsError for an unknown name."""
    config = EncoderConfig(name=name, pretrained="", configs=configs)
    with torch.device("meta"):  # no memory
        found, clip = architecture.named(config)
    counts = {key: value.numel() for key, value in clip.named_parameters()}
    return Size(
        name,
        sum(counts.values()),
        sum(count for key, count in counts.items() if not key.startswith(NOT_OF_FEATURES)),
        int(found["embed_dim"]),
        context_length(found),
        architecture.preprocess_of(clip, architecture.described_by_tags(name)),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a Markdown table; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m raycd.model.sizes", description="Print the size of encoders of open_clip."
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="open_clip model name")
    parser.add_argument("--configs", default="", help="As encoder.configs.")
    asked = parser.parse_args(arguments)
    try:
        rows = [size(name, asked.configs).row() for name in asked.names]
    except RaycdError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join([HEAD, *rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
