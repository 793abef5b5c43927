"""What a sweep varies: ranges by the dotted names of the settings.

    space = make_space(config, ["mine.alpha=0.6,0.9", "stage2.lr", "stage2.k=none"])
    settings = space.settings({"mine.eps_low": 0.95, ...})  # eps_low < eps_high, in their ranges

`--space NAME=LOW,HIGH` sets a range, `NAME=LOW,HIGH,log` a logarithmic one, `NAME=A|B|C` a choice.
`NAME=none` takes the setting out; `NAME` alone takes in one that is optional.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from raycd.config import Config, field_types, flatten, layers
from raycd.errors import ConfigError

Values = Mapping[str, Any]  # dotted name -> value

EPS_LOW, EPS_HIGH = "mine.eps_low", "mine.eps_high"
DROPOUT = "stage2.dropout"
GAP = 0.001  # least distance of eps_low and eps_high
WIDEST_S_MAX, WIDEST_K, WIDEST_PROJECTION, WIDEST_DROPOUT = 8, 6, 128, 0.7
# Sections whose settings a trial can change: no image is read and no encoder run.
SEARCHED = ("mine", "stage2")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included."""

    low: float
    high: float
    whole: bool = False
    log: bool = False

    def distribution(self) -> BaseDistribution:
        """Return it as Optuna has it."""
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def grid(self, points: int) -> list[Any]:
        """Return at most `points` values, evenly spread, the ends included."""
        start, end = (
            (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        )
        steps = [start + (end - start) * i / (points - 1) for i in range(points)]
        values = [math.exp(step) if self.log else step for step in steps]
        return list(
            dict.fromkeys(round(value) if self.whole else self.rounded(value) for value in values)
        )

    def ends(self) -> list[Any]:
        """Return its least and its greatest value."""
        return [int(self.low), int(self.high)] if self.whole else [self.low, self.high]

    def rounded(self, value: Any) -> Any:
        """Return a float to six digits, within the range."""
        return (
            min(max(float(f"{value:.6g}"), self.low), self.high)
            if isinstance(value, float)
            else value
        )

    def above(self, value: float) -> Any:
        """Return GAP above a value, or the greatest of the range."""
        return min(round(value + GAP, 6), self.high)

    def below(self, value: float) -> Any:
        """Return GAP below a value, or the least of the range."""
        return max(round(value - GAP, 6), self.low)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', logarithmic' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def distribution(self) -> BaseDistribution:
        """Return it as Optuna has it."""
        return CategoricalDistribution(self.values)

    def grid(self, points: int) -> list[Any]:
        """Return all values."""
        return list(self.values)

    def ends(self) -> list[Any]:
        """Return all values."""
        return list(self.values)

    def rounded(self, value: Any) -> Any:
        """Return the value as it is."""
        return value

    def above(self, value: float) -> Any:
        """Return the next one above a value, or the greatest of all."""
        return min((other for other in self.values if other > value), default=max(self.values))

    def below(self, value: float) -> Any:
        """Return the next one below a value, or the least of all."""
        return max((other for other in self.values if other < value), default=min(self.values))

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return " | ".join(map(str, self.values))


@dataclass(frozen=True)
class Space:
    """Ranges by dotted name, and the configuration that they vary."""

    config: Config
    ranges: Mapping[str, Range | Choice]

    def default(self) -> dict[str, Any]:
        """Return the configuration's own values."""
        flat = flatten(self.config)
        return {name: flat[name] for name in self.ranges}

    def holds(self, values: Values) -> bool:
        """Tell whether each value lies in its range."""
        return all(value in self.ranges[name] for name, value in values.items())

    def settings(self, proposed: Values) -> dict[str, Any]:
        """Return what a proposal sets: floats to six digits, eps_high above eps_low, in range."""
        values = {name: self.ranges[name].rounded(value) for name, value in proposed.items()}
        low = values.get(EPS_LOW, self.config.mine.eps_low)
        high = values.get(EPS_HIGH, self.config.mine.eps_high)
        if low >= high:
            if EPS_HIGH in values:
                values[EPS_HIGH] = high = self.ranges[EPS_HIGH].above(low)
            if EPS_LOW in values and low >= high:
                values[EPS_LOW] = self.ranges[EPS_LOW].below(high)
        return values

    def configured(self, settings: Values) -> Config:
        """Return the configuration with these settings. Raises ConfigError for impossible ones."""
        tree = self.config.model_dump()
        for name, value in settings.items():
            section, _, field = name.partition(".")
            tree[section][field] = value
        return layers.build([layers.Layer("sweep", tree)])

    def grid(self, points: int) -> list[dict[str, Any]]:
        """Return every combination of at most `points` values of each range."""
        values = [self.ranges[name].grid(points) for name in self.ranges]
        return [
            dict(zip(self.ranges, chosen, strict=True)) for chosen in itertools.product(*values)
        ]

    def to_dict(self) -> dict[str, str]:
        """Return what a person reads: name -> "0.94 to 0.97"."""
        return {name: str(given) for name, given in self.ranges.items()}


def make_space(config: Config, overrides: Sequence[str], *, dim: int | None = None) -> Space:
    """Return the default space of `config` under `overrides` (see the module's head).

    Args:
        dim: Size of the features, which bounds K; None where it is not known yet.

    Raises:
        ConfigError: An override names no setting, or one that trials cannot change, or its range is
            empty or holds values that the configuration refuses.
    """
    optional = _optional(config, dim)
    ranges = dict(_default(config))
    for override in overrides:
        name, _, text = override.partition("=")
        _check_name(name)
        if text == "none":
            ranges.pop(name, None)
        elif text:
            ranges[name] = _parsed(name, text)
        elif name in optional:
            ranges[name] = optional[name]
        elif name not in ranges:
            raise ConfigError(
                f"the space has no range for {name}",
                got=override,
                expected=f"{name}=LOW,HIGH",
                do="give the range",
            )
    if not ranges:
        raise ConfigError(
            "the space is empty",
            got="every range taken out",
            expected="at least one",
            do="leave at least one setting in it",
        )
    space = Space(config, ranges)
    _check_values(space, dim)
    return space


def _default(config: Config) -> dict[str, Range | Choice]:
    """Return the augmentation, and the dropout of a head that has one."""
    from raycd.model import fusion  # takes seconds

    mine = config.mine
    drops = fusion.head_class(config.stage2.head).drops
    least, floor = (0.0, 0.0) if mine.thresholds == "quantile" else (-1.0, mine.floor)
    middle = round((1 + floor) / 2, 6)
    return {
        EPS_LOW: Range(floor, middle),
        EPS_HIGH: Range(middle, 1.0),
        "mine.s_max": Range(1, min(WIDEST_S_MAX, mine.neighbours), whole=True),
        "mine.alpha": Range(
            max(least, round(mine.alpha - 0.2, 6)), min(1.0, round(mine.alpha + 0.1, 6))
        ),
        "stage2.k": Range(1, WIDEST_K, whole=True),
        **({DROPOUT: Range(0.0, WIDEST_DROPOUT)} if drops else {}),
    }


def _optional(config: Config, dim: int | None) -> dict[str, Range | Choice]:
    lr = config.stage2.lr
    widest = min(WIDEST_PROJECTION, (dim or WIDEST_PROJECTION + 1) - 1)
    return {
        "stage2.bilinear_dim": Range(min(8, widest), widest, whole=True, log=True),
        "stage2.lr": Range(lr / 5, lr * 5, log=True),
        DROPOUT: Range(0.0, WIDEST_DROPOUT),
    }


def _check_name(name: str) -> None:
    if name not in field_types():
        raise layers.unknown(name, "--space")
    if name.partition(".")[0] not in SEARCHED:
        raise ConfigError(
            "a trial cannot change this setting",
            got=name,
            expected="a setting of " + " or ".join(SEARCHED) + " that needs no new features",
            do=f"take --space {name} out, or set --{name} for the whole sweep",
        )
    mines = [
        "floor",
        "neighbours",
        "pool",
        "batch_size",
        "worker_mib",
        "index",
        "recall_sample",
        "hnsw_",
        "ivf_",
    ]
    fixed = [f"stage2.{field}" for field in ("select_on", "epochs", "precision", "pseudo")]
    if name.startswith(tuple(f"mine.{field}" for field in mines)) or name in (
        *fixed,
        "mine.thresholds",
    ):
        raise ConfigError(
            "a trial cannot change this setting",
            got=name,
            expected="a setting that filters the mined tables or trains the head",
            do=f"set --{name} for the whole sweep",
        )


def _parsed(name: str, text: str) -> Range | Choice:
    """Parse LOW,HIGH or LOW,HIGH,log or A|B|C."""
    kind = field_types()[name]
    if "|" in text:
        return Choice(tuple(dict.fromkeys(_value(name, word, text) for word in text.split("|"))))
    words = text.split(",")
    log = words[-1].strip() == "log"
    try:
        low, high = (float(word) for word in (words[:-1] if log else words))
    except ValueError:
        low = high = math.nan
    if kind not in (int, float):
        raise _unreadable(name, text, "A|B|C or none: it is not a number")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise _unreadable(name, text, "LOW,HIGH or LOW,HIGH,log or A|B|C or none")
    if kind is int and not (low.is_integer() and high.is_integer()):
        raise _unreadable(name, text, "whole numbers")
    if low >= high or (log and low <= 0):
        raise ConfigError(
            f"the range of {name} is empty",
            got=text,
            expected="LOW less than HIGH" + (", both greater than 0" if log else ""),
            do=f"give --space {name}=LOW,HIGH, or set --{name} for the whole sweep",
        )
    return Range(low, high, whole=kind is int, log=log)


def _value(name: str, word: str, text: str) -> Any:
    """Return one word of a choice as YAML reads it, except that 1e-4 is a number."""
    try:
        value = yaml.safe_load(word)
    except yaml.YAMLError:
        value = None
    if field_types()[name] is float and isinstance(value, int | str):
        with contextlib.suppress(ValueError):  # the configuration refuses what is not a number
            value = float(value)
    if not isinstance(value, int | float | str):
        raise _unreadable(name, text, "A|B|C, each one value")
    return value


def _unreadable(name: str, text: str, expected: str) -> ConfigError:
    return ConfigError(f"the range of {name} cannot be read", got=text, expected=expected)


def _check_head(base: Config, config: Config) -> None:
    """Raise ConfigError where trials cannot train a head on what the run has for its own."""
    from raycd.model import fusion  # takes seconds

    own, other = (fusion.head_class(one.stage2.head) for one in (base, config))
    if not other.trains or other.on_titles or not other.needs <= own.needs:
        raise ConfigError(
            "the space holds a head that trials cannot train",
            got=f"stage2.head {config.stage2.head}",
            expected="one that trains on triplets, and needs no more of the encoder than that of "
            f"the run, {base.stage2.head}",
            do="leave it out; or sweep it by itself, with --stage2.head",
        )


def _check_values(space: Space, dim: int | None) -> None:
    """Raise ConfigError where an end of a range is impossible beside the other defaults."""
    low, high = space.ranges.get(EPS_LOW), space.ranges.get(EPS_HIGH)
    least = min(low.ends()) if low else space.config.mine.eps_low
    greatest = max(high.ends()) if high else space.config.mine.eps_high
    if least >= greatest:
        raise ConfigError(
            "the space allows no eps_low below an eps_high",
            got=f"{EPS_LOW} from {least}, {EPS_HIGH} to {greatest}",
            do="lower the one or raise the other",
        )
    for name, given in space.ranges.items():
        for value in given.ends():
            try:
                config = space.configured(
                    space.settings(space.default() | _beside(space, name, value))
                )
            except ConfigError as error:
                raise ConfigError(
                    f"the space holds an impossible value of {name}: {error}"
                ) from error
            _check_head(space.config, config)
            if (
                dim is not None
                and config.stage2.head == "clip_cd"
                and config.stage2.bilinear_dim >= dim
            ):
                raise ConfigError(
                    "the space holds an impossible value of stage2.bilinear_dim (K)",
                    got=config.stage2.bilinear_dim,
                    expected=f"at most {dim - 1}: less than the feature size",
                )


def _beside(space: Space, name: str, value: Any) -> dict[str, Any]:
    """Return the value, with eps_low and eps_high at the ends that leave it most room."""
    values = {name: value}
    if name != EPS_LOW and EPS_LOW in space.ranges:
        values[EPS_LOW] = min(space.ranges[EPS_LOW].ends())
    if name != EPS_HIGH and EPS_HIGH in space.ranges:
        values[EPS_HIGH] = max(space.ranges[EPS_HIGH].ends())
    return values
