"""What a comparison trains: rows of heads with settings of their own, with and without pseudo
triplets, over seeds, at equal epochs and at equal triplets seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from raycd.config import Config, cli, field_types, flatten, layers
from raycd.errors import ConfigError, WeightsError, called
from raycd.model import fusion
from raycd.model.fusion import Head, joint, lincir
from raycd.runtime.pipeline import NOT_THE_RESULT, STAGES, within

ALWAYS = ("image_only", "text_only", "sum")
"""Heads without weights that are rows of every table."""
DROPOUT = "stage2.dropout"
ORIGINAL, PSEUDO = "original", "pseudo"
VARIANTS = (ORIGINAL, PSEUDO)
EPOCHS, TRIPLETS = "epochs", "triplets"
FORMS = {EPOCHS: "at equal epochs", TRIPLETS: "at equal triplets seen"}

_APART = {
    joint.NAME: "asks of the encoder what features do not hold",
    lincir.NAME: "learns from titles, and from no triplet",
}
_ROW = re.compile(r"[\w-]+")
_OF_STAGE = {stage.name: tuple(stage.settings) for stage in STAGES}
_OF_ALL = tuple(f"stage2.{name}" for name in ("head", "epochs", "pseudo", "select_on", "select_by"))


@dataclass(frozen=True)
class Entry:
    """A row: a head, and what is set for it alone."""

    name: str
    head: str
    settings: Mapping[str, Any]
    option: str = "--set"
    """What gave them."""

    def config(self, config: Config, variant: str) -> Config:
        """Return `config` with this head and its settings, with or without pseudo triplets."""
        tree = config.model_dump()
        for name, value in self.settings.items():
            section, _, field = name.partition(".")
            tree[section][field] = value
        tree["stage2"] |= {"head": self.head, "pseudo": variant == PSEUDO}
        return layers.build([layers.Layer(f"{self.option} {self.name}", tree)])


@dataclass(frozen=True)
class Plan:
    """What the options ask for."""

    entries: Sequence[Entry]
    """Rows that train, in their order in the tables."""
    untrained: Sequence[Entry]
    """Rows of heads without weights."""
    variants: Sequence[str]
    seeds: Sequence[int]
    baseline: str
    """The name of a row."""
    named: frozenset[str]
    """Rows that were asked for by name."""
    notes: Sequence[str] = ()
    """Sentences that stand below the tables: which rows this encoder has nothing for."""

    def fitted(self, build: Callable[[Entry], Head]) -> Plan:
        """Return the plan of the rows whose head fits, divided by whether it has weights.

        Args:
            build: Builds a row's head, or raises why it does not fit.

        Raises:
            RaycdError: A row that was asked for by name, or the baseline, does not fit.
            ConfigError: No row trains, or one that does not was given settings.
        """
        trained: list[Entry] = []
        still = list(self.untrained)
        lacking: dict[str, list[str]] = {}  # reason -> rows
        for entry in self.entries:
            try:
                head = build(entry)
            except (ConfigError, WeightsError) as error:
                if entry.name in self.named:
                    raise
                what, *more = (" ".join(line.split()) for line in str(error).splitlines())
                why = f"{what} ({more[0]})" if more else what
                lacking.setdefault(why, []).append(entry.name)
                continue
            has_weights = any(True for _ in head.parameters())
            if entry.settings and not has_weights:
                raise _nothing_to_set(entry.name)
            (trained if has_weights else still).append(entry)
        if not trained:
            raise ConfigError(
                "--heads names no head that trains",
                got=", ".join(entry.name for entry in still),
                expected="beside those without weights one that has some",
            )
        left_out = [f"Left out: {', '.join(rows)}: {why}" for why, rows in lacking.items()]
        return replace(self, entries=trained, untrained=still, notes=left_out)


def make_plan(
    config: Config,
    *,
    heads: str,
    settings: Sequence[str],
    variants: str,
    seeds: int,
    baseline: str = "",
) -> Plan:
    """Return the plan of the options.

    Raises ConfigError for a head, variant, setting or baseline that there is not, and for settings
    that are impossible.
    """
    cli.at_least("--seeds", seeds, 1)
    chosen = [_variant(word) for word in _words(variants, "--variants")]
    still = [Entry(name, name, {}) for name in ALWAYS]
    named = _named(heads)
    own = _settings(settings, named)
    for name, of_row in own.items():
        if name in ALWAYS:
            raise _nothing_to_set(name)
        if DROPOUT in of_row and not fusion.head_class(named[name]).drops:
            raise ConfigError(
                "--set gives dropout to a head that has none",
                got=f"{name}, which is {named[name]}",
                expected="a head with dropout (docs/heads.md): it changes nothing of another",
                do="leave it out",
            )
    entries = [
        Entry(name, head, own.get(name, {})) for name, head in named.items() if name not in ALWAYS
    ]
    if not entries:
        raise ConfigError(
            "--heads names no head that trains",
            got=heads,
            expected=f"{', '.join(ALWAYS)} are in every table anyway: name others beside them",
        )
    for entry in entries:
        entry.config(config, PSEUDO)  # refuses impossible values
    names = [entry.name for entry in (*still, *entries)]
    baseline = baseline or ("combiner" if "combiner" in names else names[0])
    if baseline not in names:
        raise ConfigError(
            "--baseline names no row of this comparison",
            got=baseline,
            expected=f"one of {', '.join(names)}",
        )
    return Plan(
        entries,
        still,
        chosen,
        range(config.seed, config.seed + seeds),
        baseline,
        frozenset({baseline, *own, *([] if heads == "all" else named)}),
    )


def _nothing_to_set(row: str) -> ConfigError:
    return ConfigError(
        "--set names a row that trains nothing",
        got=row,
        expected="a row whose head has weights: a setting changes nothing of another",
        do="leave it out",
    )


def _named(heads: str) -> dict[str, str]:
    """Return row -> head of "all", or of NAME or ROW=HEAD, separated by commas."""
    known = [name for name in fusion.names() if name not in _APART]
    if heads == "all":
        return {name: name for name in known}
    found: dict[str, str] = {}
    words = _words(heads, "--heads")
    if "all" in words:
        raise ConfigError(
            "--heads names all, and more beside it",
            got=heads,
            expected="all, or names of heads",
            do="leave the others out",
        )
    for word in words:
        row, _, head = word.partition("=")
        head = head or row
        if head in _APART:
            raise ConfigError(
                "--heads names a head that no comparison has",
                got=head,
                expected=f"all, or some of {', '.join(known)}: {head} {_APART[head]}",
                do=f"measure it by itself: {called('jobs/train.py')} --stage2.head {head}",
            )
        if head not in known:
            near = layers.nearest(head, known)
            raise ConfigError(
                "--heads names no fusion head",
                got=head,
                expected=f"all, or some of {', '.join(known)}",
                do=f"did you mean {near[0]}?" if near else None,
            )
        if not _ROW.fullmatch(row):
            raise ConfigError(
                "--heads gives a row a name that tables cannot have",
                got=word,
                expected="letters, digits, _ and -",
            )
        if row in found or (head != row and row in known):
            raise ConfigError(
                "two rows have one name",
                got=word,
                expected="a name for each row that is not that of another head",
                do="name the second row of a head: --heads combiner,bare=combiner",
            )
        found[row] = head
    return found


def _variant(word: str) -> str:
    if word not in VARIANTS:
        raise ConfigError(
            "--variants: there is no such variant",
            got=word,
            expected="original (without pseudo triplets), pseudo (with them), or both: "
            "original,pseudo",
        )
    return word


def _settings(texts: Sequence[str], rows: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return row -> dotted name -> value of texts ROW.SECTION.FIELD=VALUE."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        row, _, name = path.partition(".")
        if not equals or row not in rows:
            raise ConfigError(
                "--set names no row of this comparison" if equals else "--set cannot be read",
                got=text,
                expected="ROW.SETTING=VALUE, such as combiner.stage2.dropout=0; rows: "
                + ", ".join(rows),
            )
        check_own(name, "--set")
        found.setdefault(row, {})[name] = own_value("--set", text, value)
    return found


def own_value(option: str, text: str, value: str) -> Any:
    """Return what YAML says `value`, a part of an option's text, is. Raises ConfigError."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option} cannot be read", got=text, expected="a value") from error


def check_own(name: str, option: str) -> None:
    """Raise ConfigError unless a row can have a setting of its own of this name."""
    if name not in field_types():
        raise layers.unknown(name, option)
    allowed = ("stage2", *_OF_STAGE["filter"])
    if not within(name, allowed) or name in _OF_ALL:
        raise ConfigError(
            "a row cannot have this setting of its own",
            got=name,
            expected="a setting of stage2 that makes another head or training, or a threshold of "
            "the pseudo triplets: all rows share encoder, features, epochs and selection",
            do=f"give --{name} for all rows" if name != "stage2.head" else "give --heads ROW=HEAD",
        )


def acts_on_pseudo(name: str) -> bool:
    """Tell whether a setting changes only trainings with pseudo triplets."""
    return name in ("stage2.k", "stage2.pseudo_weight") or within(name, _OF_STAGE["filter"])


def _words(text: str, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ConfigError(f"{option} cannot be read", got=text, expected="names between commas")
    return list(dict.fromkeys(words))


def deciding(config: Config, stages: Sequence[str], more: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings that decide what these stages give, by dotted name."""
    names = [*more, *(name for stage in stages for name in _OF_STAGE[stage])]
    return {
        name: value
        for name, value in flatten(config).items()
        if within(name, names) and not within(name, NOT_THE_RESULT)
    }
