"""The whole configuration as one pydantic tree.

`raycd.config.settings` reads it from presets, files, the environment and options, whose layers
`raycd.config.layers` joins.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import reduce
from operator import getitem
from typing import Self

import yaml
from pydantic import model_validator

from raycd.config.catalogue import AdaptConfig, ComposeConfig
from raycd.config.fields import Count, RunName, Section, Text
from raycd.config.method import (
    DataConfig,
    EmbedConfig,
    EncoderConfig,
    MineConfig,
    PretrainConfig,
    Stage1Config,
    Stage2Config,
)
from raycd.config.operation import (
    ComputeConfig,
    EvaluateConfig,
    IndexConfig,
    RegistryConfig,
    TrackingConfig,
    TrainConfig,
    TuneConfig,
)


class Config(Section):
    """Everything that decides what a run does."""

    preset: str = ""
    """Name of the preset that these settings started from."""
    name: RunName = ""
    """Name of the run: its folder under runs; empty means the preset's name."""
    runs: Text = "runs"
    """Folder or URI that holds the runs."""
    seed: Count = 0
    """The one seed of every random choice of a run."""
    data: DataConfig = DataConfig()
    """Which images and triplets are read, and what may be missing."""
    encoder: EncoderConfig = EncoderConfig()
    """The CLIP that encodes images and texts."""
    pretrain: PretrainConfig = PretrainConfig()
    """Pre-training of the demo's small CLIP."""
    adapt: AdaptConfig = AdaptConfig()
    """Contrastive fine-tuning of CLIP on titles."""
    compose: ComposeConfig = ComposeConfig()
    """Triplets composed from attributes."""
    stage1: Stage1Config = Stage1Config()
    """Fine-tuning of CLIP on triplets."""
    embed: EmbedConfig = EmbedConfig()
    """Running the frozen encoders once over all images and texts."""
    mine: MineConfig = MineConfig()
    """Similarity-based pseudo triplets."""
    stage2: Stage2Config = Stage2Config()
    """Training of the fusion head on cached features."""
    train: TrainConfig = TrainConfig()
    """How the trainings of both stages survive what machines do."""
    tune: TuneConfig = TuneConfig()
    """Search of the augmentation."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Recall on the val split."""
    index: IndexConfig = IndexConfig()
    """The index of the served gallery."""
    compute: ComputeConfig = ComputeConfig()
    """Where the work runs."""
    tracking: TrackingConfig = TrackingConfig()
    """The MLflow record."""
    registry: RegistryConfig = RegistryConfig()
    """Aliases of the registered model, which a better version takes."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for stage, section in (("stage1", self.stage1), ("stage2", self.stage2)):
            if section.select_on == "selection" and self.data.selection_fraction == 0.0:
                raise ValueError(
                    f"{stage}.select_on is selection, but data.selection_fraction is 0: "
                    f"set aside a share of train (e.g. 0.1), or choose select_on val or last"
                )
        if self.stage2.hard_negatives > self.mine.neighbours:
            raise ValueError(
                f"stage2.hard_negatives {self.stage2.hard_negatives} is greater than "
                f"mine.neighbours {self.mine.neighbours}: give hard_negatives at most "
                f"{self.mine.neighbours}, or keep more neighbours (mines again)"
            )
        return self


def field_types(section: type[Section] = Config, prefix: str = "") -> dict[str, object]:
    """Return each setting's dotted name and type, e.g. "mine.alpha": float, in the tree's order."""
    types: dict[str, object] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            types.update(field_types(field.annotation, f"{prefix}{name}."))
        else:
            types[f"{prefix}{name}"] = field.annotation
    return types


def flatten(config: Section) -> dict[str, str | int | float | bool]:
    """Return dotted name -> value, lists joined by commas: the parameters of an MLflow run."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in config:
        if isinstance(value, Section):
            flat.update({f"{name}.{inner}": leaf for inner, leaf in flatten(value).items()})
        elif isinstance(value, list | tuple):
            flat[name] = ",".join(str(item) for item in value)
        elif isinstance(value, dict):
            flat[name] = json.dumps(value)
        else:
            flat[name] = value
    return flat


def to_yaml(config: Section, without: Iterable[str] = ()) -> str:
    """Return all settings, but those `without`, as YAML that --config reads back."""
    tree = config.model_dump(mode="json")
    for name in without:
        *sections, own = name.split(".")
        del reduce(getitem, sections, tree)[own]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
