"""The settings of a program, read from its sources by pydantic-settings.

Later sources win: defaults < preset < --config FILE < environment < options. The environment names
a setting in capitals after a prefix, its section before two underscores: RAYCD_STAGE2__EPOCHS=40.
Only the program itself reads them: the configuration that it hands to Ray's workers is a value.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, cast, get_origin

from pydantic import create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError
from typing_extensions import TypeVar

from raycd import __version__, places, progress
from raycd.config import Config, Section, field_types, flatten, layers, presets
from raycd.config.layers import COMMAND_LINE, PREFIX, Layer
from raycd.errors import ConfigError
from raycd.redact import has_password, without_passwords

SERVICE = f"{PREFIX}SERVE__"
"""Prefix of the service's settings (serve/args/)."""
_OWN = ("URL", "API_KEY", "HOSTS", "MILVUS_TOKEN", "IMAGE", "PUBLISH")
OTHERS = {f"{PREFIX}{name}" for name in _OWN}
"""Variables that are not settings: of the client, the proxy (serve/security/front.py), the search
engine (raycd/gallery_engine/address.py) and compose.yaml.
"""

_SERVICE_LINK = re.compile(
    r"\w+_(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=\d+|PORT(_\d+_(TCP|UDP|SCTP))?=(tcp|udp|sctp)://.*"
    r"|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=.*)"
)
"""What Kubernetes sets in each pod for a Service, such as raycd-serve-svc: no settings."""

FORMS = 'write a list as a,b or [a, b], and what has parts as JSON: {"name": 1}'

S = TypeVar("S", bound=Section, default=Config)
Flags = Callable[[argparse.ArgumentParser], object]


@dataclass(frozen=True)
class Options(Generic[S]):
    """What a program was started with."""

    config: S
    debug: bool
    flags: argparse.Namespace
    """The program's own options."""


def parse(
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    flags: Flags | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Options:
    """Read the settings of a job; `flags` adds its own options. Raises ConfigError for a mistake.

    --help and --version print and raise SystemExit(0).
    """
    return _Reader(Config, prog, description, flags).read(argv, environment)


def parse_service(
    model: type[S],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    environment: Mapping[str, str] = os.environ,
) -> Options[S]:
    """Read the settings of the service, whose options are written with dashes: --top-k 5."""
    return _Reader(model, prog, description, None, prefix=SERVICE, dashes=True).read(
        argv, environment
    )


def addresses(gallery: str, pictures: str) -> tuple[str, str]:
    """Return the options --gallery and --pictures, or the service's of the environment.

    Pictures of the environment are those of the gallery there, and of no other that is named: then
    it says so. Raises ConfigError for an option that holds a password.
    """
    named, kept = (os.environ.get(f"{SERVICE}{own}", "") for own in ("GALLERY", "PICTURES"))
    _refuse_password("--gallery", gallery, f"{SERVICE}GALLERY")
    _refuse_password("--pictures", pictures, f"{SERVICE}PICTURES")
    if kept and not pictures:
        if not (gallery and named) or places.place(gallery) == places.place(named):
            pictures = kept
        else:
            progress.say(f"{SERVICE}PICTURES is of another gallery than --gallery, and left out")
    return gallery or named, pictures


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, do=f"see {self.prog} --help")


class _Reader(Generic[S]):
    """The options of one program, and how its layers become its settings."""

    def __init__(
        self,
        model: type[S],
        prog: str,
        description: str,
        flags: Flags | None,
        *,
        prefix: str = PREFIX,
        dashes: bool = False,
    ) -> None:
        self._model, self._prefix, self._dashes = model, prefix, dashes
        self._variables = {
            prefix + name.upper().replace(".", "__"): name for name in field_types(model)
        }
        self._actions: dict[str, argparse.Action] = {}
        preset = "[--preset NAME] " if "preset" in model.model_fields else ""
        setting = "--SETTING" if dashes else "--SECTION.FIELD"
        self._parser = _Parser(
            prog=prog,
            description=description,
            usage=f"%(prog)s {preset}[--config FILE] [{setting} VALUE ...]",
            epilog="After each setting stands where its value comes from. Later ones win: default, "
            f"{'--preset, ' if preset else ''}--config, environment (such as "
            f"{list(self._variables)[-1]}), option. Lists: a,b or a JSON list.",
            allow_abbrev=False,
            add_help=False,
        )
        own = self._parser.add_argument
        own("-h", "--help", action="store_true", help="Show the settings as they would be used.")
        own("--version", action="version", version=f"raycd {__version__}")
        about = "YAML file of settings" + ("; may name its own preset." if preset else ".")
        own("--config", metavar="FILE", help=about)
        own("--debug", action="store_true", help="Show the traceback of an error.")
        if flags is not None:
            flags(self._parser)
        self._source = CliSettingsSource[Any](
            create_model("Settings", __base__=cast(Any, (BaseSettings, model))),
            root_parser=self._parser,
            cli_avoid_json=True,
            cli_kebab_case=dashes,
            cli_implicit_flags=dashes,
            add_argument_method=self._add,
            formatter_class=argparse.HelpFormatter,
        )

    def read(self, argv: Sequence[str], environment: Mapping[str, str]) -> Options[S]:
        known, rest = self._parser.parse_known_args([self._dashed(word) for word in argv])
        given = vars(known)
        if not (wants_help := given.pop("help")):
            self._refuse_unknown(rest, given)
        named = {name: given.pop(name) for name in field_types(self._model) if name in given}
        for name, value in named.items():
            _refuse_password(self._option(name), str(value), self._variable(name))
        found = self._layers(given.pop("config"), environment, named)
        if wants_help:
            self._explain(found)
            self._parser.print_help()
            raise SystemExit(0)
        debug = given.pop("debug")
        return Options(layers.build(found, self._model), debug, argparse.Namespace(**given))

    def _add(self, container: Any, *names: str, **settings: Any) -> None:
        """Add an option; the service's lists take their values side by side: --hosts a b."""
        if self._dashes and settings.get("action") == "append":
            settings |= {"action": "store", "nargs": "+", "metavar": "NAME"}
        self._actions[settings["dest"]] = container.add_argument(*names, **settings)

    def _option(self, name: str) -> str:
        return f"--{name.replace('_', '-') if self._dashes else name}"

    def _dashed(self, word: str) -> str:
        """Return a word of the command line, an option as files name it with its dashes."""
        name, equals, value = word.partition("=")
        return f"{self._option(name[2:])}{equals}{value}" if name.startswith("--") else word

    def _variable(self, name: str) -> str:
        return self._prefix + name.upper().replace(".", "__")

    def _refuse_unknown(self, rest: Sequence[str], given: Mapping[str, object]) -> None:
        names = [word[2:].partition("=")[0] for word in rest if word.startswith("--")]
        # The library also offers whole sections, as JSON.
        names += [name for name in given if any(f.startswith(f"{name}.") for f in self._actions)]
        for name in filter(None, names):
            raise layers.unknown(name, COMMAND_LINE, self._model, self._option)
        if rest:
            raise ConfigError(
                "an argument belongs to no option",
                got=" ".join(rest),
                expected="--name value; a list as a,b or [a, b]",
            )

    def _layers(
        self, file: str | None, environment: Mapping[str, str], named: Mapping[str, Any]
    ) -> list[Layer]:
        found = [] if file is None else [Layer(file, layers.read_yaml(Path(file)))]
        found += self._environment(environment)
        found.append(Layer(COMMAND_LINE, self._decoded(named, "an option's value cannot be read")))
        if "preset" in self._model.model_fields:
            presets_named = [str(p) for layer in found if (p := layer.values.get("preset"))]
            if presets_named:
                name = presets_named[-1]
                found.insert(0, Layer(f"preset {name}", presets.load(name)))
        return found

    def _environment(self, environment: Mapping[str, str]) -> list[Layer]:
        """Return a layer for each variable. Raises ConfigError for one that means nothing."""
        found, types = [], field_types(self._model)
        for variable in sorted(environment):
            if not variable.startswith(self._prefix) or variable in OTHERS:
                continue
            if self._prefix == PREFIX and variable.startswith(SERVICE):
                continue
            name = self._variables.get(variable)
            if name is None and _SERVICE_LINK.fullmatch(f"{variable}={environment[variable]}"):
                continue
            if name is None:
                guess = variable.removeprefix(self._prefix).lower().replace("__", ".")
                raise layers.unknown(guess, "environment", self._model, self._variable)
            text = environment[variable]
            # An option of a list gathers its texts, each of which may hold several values.
            value = [text] if get_origin(types[name]) in (list, tuple) else text
            values = self._decoded({name: value}, f"{variable} cannot be read")
            found.append(Layer(variable, values))
        return found

    def _decoded(self, named: Mapping[str, Any], problem: str) -> dict[str, Any]:
        try:
            values: dict[str, Any] = self._source(parsed_args=dict(named))()
        except (SettingsError, ValueError) as error:
            raise ConfigError(problem, got=error, do=FORMS) from error
        return values

    def _explain(self, found: Sequence[Layer]) -> None:
        """Have --help show each setting's value and where it comes from."""
        given = layers.gather(found, self._model)
        for name, default in flatten(self._model()).items():
            value, origin = given.get(name, (default, "default"))
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            action = self._actions[name]
            words = (action.help or "").rpartition(" (default: ")[0]
            shown = without_passwords(text).replace("%", "%%") or "empty"
            action.help = f"{words} ({origin}: {shown})"


def _refuse_password(option: str, text: str, variable: str) -> None:
    if has_password(text):
        raise ConfigError(
            "a password does not belong in an option: everybody on this machine can read it",
            got=f"{option} with a password",
            do=f"set {variable} in the environment instead, or the setting in a file (--config)",
        )
