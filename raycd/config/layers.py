"""Layers of settings -> one `Config`, or one ConfigError that names each mistake, its origin and
what is possible.

A layer is an origin ("my.yaml", "command line") and a nested mapping; later layers override earlier
ones. Lists are replaced, never joined. Nothing else fills a setting: the environment is not read.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from raycd.config import Config, Section, field_types
from raycd.errors import ConfigError

COMMAND_LINE = "command line"


class Layer(NamedTuple):
    """Settings and where they come from."""

    origin: str
    values: Mapping[str, object]


class _Given(NamedTuple):
    """A value as the user gave it."""

    value: object
    origin: str

    def __str__(self) -> str:
        shown = str(self.value) if self.origin == COMMAND_LINE else repr(self.value)
        return f"{shown if len(shown) <= 80 else shown[:77] + '...'} ({self.origin})"


def build(layers: Sequence[Layer]) -> Config:
    """The configuration that the layers make. Raises ConfigError with one paragraph for each
    setting at fault.
    """
    given: dict[str, _Given] = {}
    for layer in layers:
        given.update(_leaves(layer.values, Config, layer.origin))
    slips = [name for name, got in given.items() if _is_boolean_for_number(name, got.value)]
    problems = [str(_problem(name, given.pop(name))) for name in slips]
    try:
        config = Config.model_validate(_nested(given))
    except ValidationError as error:
        problems += [str(_explained(details, given)) for details in error.errors(include_url=False)]
    if problems:
        # Two wrong items of a list are one wrong setting.
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return config


def parse_yaml(text: bytes | str, *, source: str) -> dict[str, object]:
    """The mapping that a YAML text holds; an empty text is an empty mapping. `source` names it in
    errors.
    """
    try:
        values = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}, column {mark.column + 1}" if mark else source
        raise ConfigError(f"{place}: malformed YAML", got=error.problem) from error
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
    """The mapping in a YAML file. Raises ConfigError if the file is absent, unreadable or
    malformed.
    """
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
    """At most three dotted names that are like `name` as a whole or in their last part, the nearest
    first.
    """

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


def unknown(name: str, origin: str, *, prefix: str = "") -> ConfigError:
    """The error for a setting that does not exist; `prefix` ("--") is how the origin writes names."""
    near = " or ".join(f"{prefix}{known}" for known in nearest(name, field_types()))
    return ConfigError(
        "unknown setting",
        got=f"{prefix}{name} ({origin})",
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


def _leaves(
    values: Mapping[str, object], section: type[Section], origin: str, prefix: str = ""
) -> dict[str, _Given]:
    """Dotted name -> value, for names that exist. An empty section (`stage2:` with nothing beneath)
    sets nothing.
    """
    leaves: dict[str, _Given] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        field = section.model_fields.get(key) if isinstance(key, str) else None
        if field is None:
            if name in field_types():
                raise ConfigError(
                    "settings in YAML are nested",
                    got=f"{name} ({origin})",
                    expected=": ".join(name.split(".")[:-1])
                    + f": {{{name.rpartition('.')[2]}: ...}}",
                )
            raise unknown(name, origin)
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            leaves[name] = _Given(value, origin)
        elif isinstance(value, Mapping):
            leaves.update(_leaves(value, field.annotation, origin, f"{name}."))
        elif value is not None:
            fields = ", ".join(field.annotation.model_fields)
            raise ConfigError(
                f"{name} is a section",
                got=_Given(value, origin),
                expected=f"a mapping of: {fields}",
            )
    return leaves


def _nested(given: Mapping[str, _Given]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, got in given.items():
        *sections, leaf = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[leaf] = got.value
    return tree


def _is_boolean_for_number(name: str, value: object) -> bool:
    """Pydantic reads true as 1; in YAML `epochs: yes` is a slip."""
    return isinstance(value, bool) and field_types()[name] in (int, float)


def _explained(details: ErrorDetails, given: Mapping[str, _Given]) -> ConfigError:
    """One of pydantic's errors in our words."""
    if (
        details["type"] == "value_error"
    ):  # raised by the validators in raycd.config, which speak to the user
        return ConfigError(str(details["ctx"]["error"]))
    parts = [part for part in details["loc"] if isinstance(part, str)]
    name = ".".join(parts)
    return _problem(name, given.get(name, _Given(details["input"], "default")))


def _problem(name: str, got: _Given) -> ConfigError:
    schema = _schema(name)
    hint = ""
    if isinstance(got.value, int | float):
        hint = (
            " (in quotes)"
            if schema.get("type") == "string"
            else ""
            if math.isfinite(got.value)
            else ", finite"
        )
    return ConfigError(f"{name}: impossible value", got=got, expected=_expected(schema) + hint)


def _schema(name: str) -> dict[str, Any]:
    """The JSON schema of one field."""
    whole = Config.model_json_schema()
    schema = whole
    for part in name.split("."):
        schema = schema["properties"][part]
        if "$ref" in schema:
            schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _expected(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words: "a number greater than 0", "one of: text, image"."""
    if "enum" in schema:
        return "one of: " + ", ".join(str(choice) for choice in schema["enum"])
    if schema["type"] == "boolean":
        return "true or false"
    if schema["type"] == "string":
        if "pattern" in schema:
            return "letters, digits, dots, dashes and underscores, with a letter or digit first"
        return "text" + (" that is not empty" if schema.get("minLength") else "")
    if schema["type"] == "array":
        one = "one or more, " if schema.get("minItems") else ""
        return f"a list, e.g. a,b or [a, b]: {one}each {_expected(schema['items'])}"
    noun = "a whole number" if schema["type"] == "integer" else "a number"
    if "minimum" in schema and "maximum" in schema:
        return f"{noun} from {schema['minimum']:g} to {schema['maximum']:g}"
    bounds = [
        f"{word} {schema[key]:g}"
        for key, word in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "greater than"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "less than"),
        )
        if key in schema
    ]
    return " ".join([noun, " and ".join(bounds)]).strip()
