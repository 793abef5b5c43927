"""The configuration: its sections and tree, the layers it is read from, presets, and the command
line.
"""

from raycd.config.sections import (
    ComputeConfig as ComputeConfig,
)
from raycd.config.sections import (
    Count as Count,
)
from raycd.config.sections import (
    DataConfig as DataConfig,
)
from raycd.config.sections import (
    EmbedConfig as EmbedConfig,
)
from raycd.config.sections import (
    EncoderConfig as EncoderConfig,
)
from raycd.config.sections import (
    EvaluateConfig as EvaluateConfig,
)
from raycd.config.sections import (
    IndexConfig as IndexConfig,
)
from raycd.config.sections import (
    MineConfig as MineConfig,
)
from raycd.config.sections import (
    Positive as Positive,
)
from raycd.config.sections import (
    Precision as Precision,
)
from raycd.config.sections import (
    PretrainConfig as PretrainConfig,
)
from raycd.config.sections import (
    Protocol as Protocol,
)
from raycd.config.sections import (
    Section as Section,
)
from raycd.config.sections import (
    Stage1Config as Stage1Config,
)
from raycd.config.sections import (
    Stage2Config as Stage2Config,
)
from raycd.config.sections import (
    SyntheticConfig as SyntheticConfig,
)
from raycd.config.sections import (
    TrackingConfig as TrackingConfig,
)
from raycd.config.sections import (
    TuneConfig as TuneConfig,
)
from raycd.config.tree import Config as Config
from raycd.config.tree import field_types as field_types
from raycd.config.tree import flatten as flatten
from raycd.config.tree import to_yaml as to_yaml
