"""Phrases for changes of attributes, by templates that a user may replace (docs/catalogue.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import chain
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from raycd.config.layers import parse_yaml
from raycd.data.folder import Folder
from raycd.errors import ConfigError

OWN = {"plain": "raycd.compose/plain.yaml", "demo": "raycd.data.demo/wording.yaml"}
ANY = "*"

_Phrase = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
_Choice = Annotated[list[_Phrase], Field(min_length=1)]


class Change(NamedTuple):
    """What differs between a reference and a target."""

    name: str
    old: str
    new: str


class _Spoken(BaseModel):
    model_config = ConfigDict(extra="forbid")

    phrases: _Choice | None = None
    values: Annotated[
        dict[str, _Choice],
        AfterValidator(lambda given: {" ".join(key.lower().split()): given[key] for key in given}),
    ] = {}


class Phrases(BaseModel):
    """A vocabulary: the content of a wording file."""

    model_config = ConfigDict(extra="forbid")

    attributes: Annotated[dict[str, _Spoken], Field(min_length=1)]
    """By attribute, or ANY: phrases for any new value, and those of certain values."""
    links: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = [" and "]
    """What is between two phrases."""

    def captions(self, rng: np.random.Generator, changes: Sequence[Change]) -> list[str]:
        """Word the changes twice, each time in an order of its own; once where it is the same."""
        texts = [self._text(rng, changes) for _ in range(2)]
        return list(dict.fromkeys(texts))

    def options(self, change: Change) -> list[str]:
        """Return the phrases for a change, filled in. Raises ConfigError where there are none."""
        for name in (change.name, ANY):
            spoken = self.attributes.get(name)
            found = spoken and (spoken.values.get(change.new) or spoken.phrases)
            if found:
                return [phrase.format(**change._asdict()) for phrase in found]
        raise ConfigError(
            "the wording has no phrase for a change",
            got=f"{change.name}: {change.new}",
            expected=f"phrases of {change.name} or of {ANY!r} in the file of compose.wording",
            do=f"add them, or leave {change.name} out of compose.attributes",
        )

    def _text(self, rng: np.random.Generator, changes: Sequence[Change]) -> str:
        text = ""
        for at in rng.permutation(len(changes)):
            link = self.links[rng.integers(len(self.links))] if text else ""
            options = self.options(changes[at])
            text += link + options[rng.integers(len(options))]
        return text


def read_phrases(name: str, root: str) -> Phrases:
    """Return the vocabulary of `compose.wording`: one of OWN, or a YAML file.

    Raises:
        ConfigError: The file is no vocabulary.
        DataError: It cannot be read.
    """
    if name in OWN:
        package, _, file = OWN[name].partition("/")
        content = resources.files(package).joinpath(file).read_bytes()
    else:
        content = Folder(root or ".").read(name)
    try:
        found = Phrases.model_validate(parse_yaml(content, source=name))
        _check_places(found.attributes)
    except (ValidationError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{name} is no wording",
            got=_shown(error),
            expected="attributes: {colour: {phrases: [is {new}]}}, with {new}, {old} and {name} as "
            "places, and links: [' and ']",
            do="see docs/catalogue.md",
        ) from error
    return found


def _check_places(attributes: Mapping[str, _Spoken]) -> None:
    for spoken in attributes.values():
        for phrase in chain(spoken.phrases or (), *spoken.values.values()):
            phrase.format(**Change("name", "old", "new")._asdict())


def _shown(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(error).__name__}: {error}"
