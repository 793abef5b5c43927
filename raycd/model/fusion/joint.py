"""The head of an encoder that composes image and text by itself (`raycd.model.joint`).

The query is `Encoder.compose` of the reference's pixels and the text, which pipeline and search ask
in the head's place: it has no weights and is not trained. Where there are features alone, as in the
sample that an index is measured on, it is their sum.
"""

from __future__ import annotations

from raycd.model.fusion.registry import HeadConfig
from raycd.model.fusion.sum import Sum

NAME = "joint"


class Joint(Sum):
    """L2(x + t), where the encoder itself cannot be asked."""


def build(config: HeadConfig) -> Joint:
    """Build the head, which fits any dimension."""
    return Joint()
