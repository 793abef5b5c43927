"""The configuration: its sections and tree, the layers it is read from, presets, programs."""

from raycd.config.catalogue import AdaptConfig, ComposeConfig
from raycd.config.fields import Compile, Count, Positive, Precision, Protocol, Section
from raycd.config.method import (
    DataConfig,
    EmbedConfig,
    EncoderConfig,
    Finetuning,
    MineConfig,
    PretrainConfig,
    Stage1Config,
    Stage2Config,
    SyntheticConfig,
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
from raycd.config.tree import Config, field_types, flatten, to_yaml

__all__ = [
    "AdaptConfig",
    "Compile",
    "ComposeConfig",
    "ComputeConfig",
    "Config",
    "Count",
    "DataConfig",
    "EmbedConfig",
    "EncoderConfig",
    "EvaluateConfig",
    "Finetuning",
    "IndexConfig",
    "MineConfig",
    "Positive",
    "Precision",
    "PretrainConfig",
    "Protocol",
    "RegistryConfig",
    "Section",
    "Stage1Config",
    "Stage2Config",
    "SyntheticConfig",
    "TrackingConfig",
    "TrainConfig",
    "TuneConfig",
    "field_types",
    "flatten",
    "to_yaml",
]
