"""The sections of a catalogue without triplets: adapting to its titles, composing its triplets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raycd.config.fields import Count, Fraction, Positive, RateOrAuto, Section, Text
from raycd.config.method import Finetuning


class AdaptConfig(Finetuning):
    """Contrastive fine-tuning of CLIP on images and their titles, before everything else."""

    epochs: Count = 0
    """Passes over the train images that have a title or attributes; 0: the stage is left out."""
    logit_scale: RateOrAuto = "auto"
    """Factor of the cosines before the softmax; auto is what the encoder learnt itself."""


class ComposeConfig(Section):
    """Triplets composed from attributes, where a data set has none of its own to train on."""

    when: Literal["auto", "missing", "instead", "withhold", "never"] = "auto"
    """missing: where there are no train triplets; instead: those that there are, are withheld;
    withhold: so they are, and none are composed; auto is missing for data.format catalogue, and
    never for the others.
    """
    attributes: list[Text] = []
    """Attributes to compose from; empty: all but the title and those of too many values."""
    most_values: Annotated[int, Field(ge=2)] = 200
    """Attributes of more values than this are left out, unless compose.attributes names them."""
    differences: Positive = 1
    """Most attributes in which the two images of a triplet differ; they share at least as many,
    their category counted.
    """
    neighbours: Positive = 1000
    """Images of its category, the nearest in the adapted space, that an image is paired with; fewer
    where their table, 12 bytes a neighbour, would need more than a GiB.
    """
    per_image: Positive = 2
    """Pairs drawn for each image, each of which gives a triplet in both directions."""
    copies: Fraction = 0.02
    """Share of all nearest pairs that count as copies of one thing, and are left out; unless it is
    0, equal pictures always are.
    """
    rarity: Annotated[float, Field(ge=0.0)] = 0.5
    """How much more likely rare values are drawn: a pair weighs as the number of pairs that change
    its rarest value, to the power of minus this; 0: all alike.
    """
    wording: Text = "plain"
    """How changes are worded: plain, demo, or a YAML file (a relative path is in data.root)."""
