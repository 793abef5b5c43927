"""The command line of every job: settings in layers, and how a job ends.

    if __name__ == "__main__":
        sys.exit(cli.run(main, prog="jobs/train.py", description="..."))

Layers, later ones win: defaults < --preset < --config my.yaml < dotted options (--stage2.epochs
40). Exit codes: 0 done, 2 a mistake that the user can fix, 75 the Ray of this job has died
(raycd/runtime/watch.py), 130 Ctrl-C, 143 terminated, 1 a bug of ours (with traceback).
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from raycd import __version__
from raycd.config import Config, field_types, layers, openmp, presets
from raycd.config.layers import COMMAND_LINE, Layer
from raycd.errors import ConfigError, RaycdError

EXIT_MISTAKE = 2
EXIT_RAY_DIED = 75  # EX_TEMPFAIL of sysexits.h: the same may succeed when it is tried again
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

AGAIN = "run the same command again to continue"
ANEW = "run the same command again to start over"

terminated = threading.Event()
"""SIGTERM has come."""


@dataclass(frozen=True)
class Options:
    """What a command line says."""

    config: Config
    debug: bool
    flags: argparse.Namespace
    """The job's own flags."""


def parse(
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    flags: Callable[[argparse.ArgumentParser], object] | None = None,
) -> Options:
    """Read a command line; `flags` adds a job's own options to the parser. Raises ConfigError for
    every mistake.

    --help and --version print and raise SystemExit(0).
    """
    parser = _Parser(
        prog=prog,
        description=description,
        usage="%(prog)s [--preset NAME] [--config FILE] [--SECTION.FIELD VALUE ...]",
        epilog="Later ones win: defaults (shown above), --preset, --config, dotted options. Lists: a,b or a JSON list.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"raycd {__version__}")
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of settings; may name its own preset."
    )
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    if flags is not None:
        flags(parser)
    source = CliSettingsSource[Any](
        _Settings, root_parser=parser, cli_avoid_json=True, formatter_class=argparse.HelpFormatter
    )
    known, rest = parser.parse_known_args(list(argv))
    _refuse_unknown(rest)

    given = vars(known)
    for section in _sections() & given.keys():  # the library also offers whole sections, as JSON
        raise layers.unknown(section, COMMAND_LINE, prefix="--")
    named = {
        name: given.pop(name) for name in field_types() if name in given
    }  # only what the command line names
    try:
        values = source(parsed_args=named)()
    except (SettingsError, ValueError) as error:
        raise ConfigError(
            "an option's value cannot be read", got=error, do="write a list as a,b or [a, b]"
        ) from error
    config = _layered(given.pop("config"), values)
    return Options(config=config, debug=given.pop("debug"), flags=argparse.Namespace(**given))


def run(
    main: Callable[[Options], int | None],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    flags: Callable[[argparse.ArgumentParser], object] | None = None,
    again: str = AGAIN,
) -> int:
    """Parse, call `main`, and give the process's exit code; see the module's head for the codes.

    `again` is what someone reads who has interrupted the job: whether the same command goes on, or
    starts over.
    """
    argv = sys.argv[1:] if argv is None else argv
    os.environ.update(openmp.settings())  # before torch is imported
    runs = ""
    try:
        with sigterm_interrupts():
            options = parse(argv, prog=prog, description=description, flags=flags)
            runs = options.config.runs
            return main(options) or 0
    except KeyboardInterrupt as interrupt:
        return _interrupted(isinstance(interrupt, Terminated), again)
    except SystemExit as stop:
        if stop.code == signal.SIGTERM:  # a handler of Ray's exits with the signal's number
            return _interrupted(True, again)
        raise
    except Exception as error:
        message = _users_message(error, runs)
        if message is None:
            raise
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return EXIT_MISTAKE


class Terminated(KeyboardInterrupt):
    """SIGTERM: whatever cleans up after Ctrl-C cleans up after it too."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While open, SIGTERM raises Terminated. Open it again after ray.init, whose own handler ends
    with exit code 1.
    """
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return

    terminated.clear()

    def terminate(signum: int, frame: FrameType | None) -> NoReturn:
        terminated.set()
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if terminated.is_set() and not isinstance(interrupt, Terminated):
            raise Terminated from interrupt  # ray.get makes a plain KeyboardInterrupt of it
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class _Settings(BaseSettings, Config):
    """Config as CliSettingsSource wants it; never instantiated, so that no environment variable is
    read.
    """

    model_config = SettingsConfigDict(extra="forbid")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, do=f"see {self.prog} --help")


def _refuse_unknown(rest: Sequence[str]) -> None:
    for argument in rest:
        if argument.startswith("--") and argument != "--":
            raise layers.unknown(argument[2:].partition("=")[0], COMMAND_LINE, prefix="--")
    if rest:
        raise ConfigError(
            "an argument belongs to no option",
            got=" ".join(rest),
            expected="--name value; a list as a,b or [a, b]",
        )


def _sections() -> set[str]:
    """Dotted names of all sections."""
    return {
        name[:end] for name in field_types() for end, letter in enumerate(name) if letter == "."
    }


def _layered(path: str | None, overrides: dict[str, object]) -> Config:
    """The configuration of --config and the dotted options, on top of the preset that either names."""
    above: list[Layer] = []
    if path is not None:
        above.append(Layer(path, layers.read_yaml(Path(path))))
    above.append(Layer(COMMAND_LINE, overrides))
    named = [str(layer.values["preset"]) for layer in above if layer.values.get("preset")]
    if named:
        above.insert(0, Layer(f"preset {named[-1]}", presets.load(named[-1])))
    return layers.build(above)


def _interrupted(by_sigterm: bool, again: str) -> int:
    print(f"{'terminated' if by_sigterm else 'interrupted'}: {again}", file=sys.stderr)
    return EXIT_TERMINATED if by_sigterm else EXIT_INTERRUPTED


def _users_message(error: Exception, runs: str) -> str | None:
    """The message for a mistake that the user can mend, also one that Ray carried here from a
    worker; else None.
    """
    for cause in _causes(error):
        if isinstance(cause, RaycdError):
            return str(cause)
        if _is_disk_full(cause):
            # What goes to a store is written on this machine first.
            place = Path(
                getattr(cause, "filename", None)
                or (tempfile.gettempdir() if "://" in runs else runs)
            )
            return str(
                RaycdError(
                    f"no space left on the disk of {place}",
                    got=f"{_free_bytes(place):,} bytes free",
                    do=f"free some space, then {AGAIN}",
                )
            )
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return str(
                RaycdError(
                    f"no permission: {cause.filename or runs}",
                    got=cause.strerror,
                    do="make it accessible to this user, or name another place (--runs, --data.root)",
                )
            )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what lies beneath it, Ray's wrappers (RayTaskError, WorkerGroupError,
    ControllerError) opened.

    A wrapper is not itself yielded: RayTaskError also subclasses its cause, and its text is a
    remote traceback.
    """
    wrapped = [getattr(error, "cause", None), getattr(error, "controller_failure", None)]
    wrapped += list(getattr(error, "worker_failures", {}).values())
    inner = [cause for cause in wrapped if isinstance(cause, BaseException) and cause is not error]
    if not inner:
        yield error
        inner = [error.__cause__] if error.__cause__ is not None else []
    for cause in inner:
        yield from _causes(cause)


def _is_disk_full(error: BaseException) -> bool:
    """By number where there is one; Arrow, safetensors and SQLite only say so."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return "No space left on device" in text or "database or disk is full" in text


def _free_bytes(place: Path) -> int:
    """Free bytes on the disk of a path, which need not exist."""
    for folder in (place, *place.absolute().parents):
        if os.path.isdir(folder):
            return shutil.disk_usage(folder).free
    return 0
