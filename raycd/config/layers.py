"""Layers of settings -> one configuration, or one error that names each mistake and its origin.

A layer is an origin ("my.yaml", "command line") and a nested mapping; later layers override earlier
ones. Lists are replaced, never joined.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, overload

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raycd.config import Config, Section, field_types
from raycd.config.fields import IN_WORDS
from raycd.errors import ConfigError
from raycd.redact import without_passwords

COMMAND_LINE = "command line"
PREFIX = "RAYCD_"
"""Prefix of the variables of the environment that are settings."""

S = TypeVar("S", bound=Section)


class Layer(NamedTuple):
    """Settings and where they come from."""

    origin: str
    values: Mapping[str, object]


class Given(NamedTuple):
    """A value as the user gave it."""

    value: object
    origin: str

    def __str__(self) -> str:
        as_typed = self.origin == COMMAND_LINE or self.origin.startswith(PREFIX)
        shown = without_passwords(str(self.value) if as_typed else repr(self.value))
        return f"{shown if len(shown) <= 80 else shown[:77] + '...'} ({self.origin})"


@overload
def build(layers: Sequence[Layer]) -> Config: ...


@overload
def build(layers: Sequence[Layer], model: type[S]) -> S: ...


def build(layers: Sequence[Layer], model: type[Section] = Config) -> Section:
    """Return the configuration that the layers make.

    Raises ConfigError with one paragraph for each setting at fault.
    """
    given = gather(layers, model)
    types = field_types(model)
    # pydantic reads true as 1; in YAML `epochs: yes` is a slip.
    slips = [name for name, got in given.items() if _has_bool(got.value) and _counts(types[name])]
    problems = [str(_problem(name, given.pop(name), "a number")) for name in slips]
    try:
        config = model.model_validate(_nested(given))
    except ValidationError as error:
        problems += [str(_explained(details, given)) for details in error.errors(include_url=False)]
    if problems:
        # Two wrong items of a list are one wrong setting.
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return config


def gather(layers: Sequence[Layer], model: type[Section] = Config) -> dict[str, Given]:
    """Return dotted name -> the value that wins. Raises ConfigError for an unknown setting."""
    given: dict[str, Given] = {}
    for layer in layers:
        given.update(_leaves(layer.values, model, model, layer.origin))
    return given


def parse_yaml(text: bytes | str, *, source: str) -> dict[str, object]:
    """Return the mapping in a YAML text, {} of an empty one. `source` names it in errors."""
    try:
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise ConfigError(f"{where}: malformed YAML", got=error.problem) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: malformed YAML", got=str(error).splitlines()[0]) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source}: no settings",
            got=f"a {type(values).__name__}",
            expected="a mapping, e.g. `stage2: {epochs: 40}`",
        )
    return values


def read_yaml(path: Path) -> dict[str, object]:
    """Return the mapping in a YAML file. Raises ConfigError where it cannot be read."""
    try:
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError("no such configuration file", got=path) from error
    except OSError as error:
        raise ConfigError(
            "configuration file cannot be read", got=f"{path}: {error.strerror}"
        ) from error
    return parse_yaml(text, source=str(path))


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return at most three names that are like `name` or its last part, the nearest first."""

    def like(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    leaf = name.rpartition(".")[2]
    whole = {full: like(name, full) for full in known}
    near = [
        full for full in whole if whole[full] >= 0.5 or like(leaf, full.rpartition(".")[2]) >= 0.8
    ]
    enough = 0.85 * max((whole[full] for full in near), default=0.0)
    return sorted((full for full in near if whole[full] >= enough), key=lambda full: -whole[full])[
        :3
    ]


def unknown(
    name: str,
    origin: str,
    model: type[Section] = Config,
    write: Callable[[str], str] = str,
) -> ConfigError:
    """Return the error for a setting that is none; `write` is how the origin writes names."""
    near = " or ".join(write(known) for known in nearest(name, field_types(model)))
    return ConfigError(
        "unknown setting",
        got=f"{write(name)} ({origin})",
        expected=f"did you mean {near}?" if near else "a setting that --help lists",
    )


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, which YAML loaders resolve silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _has_bool(value: object) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value
    if isinstance(parts, Iterable) and not isinstance(parts, str | bytes):
        return any(map(_has_bool, parts))
    return isinstance(parts, bool)


def _counts(found: object) -> bool:
    """Tell whether a type may be a number, or hold some, and is never bool."""
    parts = {found, *get_args(found)}
    return bool not in parts and (
        not parts.isdisjoint({int, float}) or any(_counts(part) for part in get_args(found))
    )


def _leaves(
    values: Mapping[str, object],
    section: type[Section],
    model: type[Section],
    origin: str,
    prefix: str = "",
) -> dict[str, Given]:
    """Return dotted name -> value; an empty section (`stage2:` alone) sets nothing."""
    leaves: dict[str, Given] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        field = section.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            if name in field_types(model):
                sections, _, leaf = name.rpartition(".")
                nested = f"{sections.replace('.', ': ')}: {{{leaf}: ...}}"
                raise ConfigError(
                    "settings in YAML are nested", got=f"{name} ({origin})", expected=nested
                )
            raise unknown(name, origin, model)
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            leaves[name] = Given(value, origin)
        elif isinstance(value, Mapping):
            leaves.update(_leaves(value, field.annotation, model, origin, f"{name}."))
        elif value is not None:
            fields = ", ".join(field.annotation.model_fields)
            raise ConfigError(
                f"{name} is a section",
                got=Given(value, origin),
                expected=f"a mapping of: {fields}",
            )
    return leaves


def _nested(given: Mapping[str, Given]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, got in given.items():
        *sections, leaf = name.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[leaf] = got.value
    return tree


def _explained(details: ErrorDetails, given: Mapping[str, Given]) -> ConfigError:
    """Return one of pydantic's errors as ours."""
    parts = [part for part in details["loc"] if isinstance(part, str)]
    names = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    # Of a value that may have several forms, pydantic names the form and its parts, too
    name = next((name for name in names if name in given), ".".join(parts))
    if details["type"] == "value_error":  # of our own validators, which speak to the user
        message = str(details["ctx"]["error"])
        if not name or name not in given:
            return ConfigError(message)
        return _problem(name, given[name], message)
    expected = details["msg"].removeprefix("Input should be ")
    if details["type"] == "string_pattern_mismatch":
        expected = IN_WORDS.get(details["ctx"]["pattern"], expected)
    if details["type"] == "string_type":
        expected += " (in quotes)"
    return _problem(name, given.get(name, Given(details["input"], "default")), expected)


def _problem(name: str, got: Given, expected: str) -> ConfigError:
    return ConfigError(f"{name}: impossible value", got=got, expected=expected)
