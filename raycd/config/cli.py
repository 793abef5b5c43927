"""How every program with settings starts; raycd/program.py is how it ends.

if __name__ == "__main__":
    sys.exit(cli.run(main, prog="jobs/train.py", description="..."))
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from raycd.config.settings import Options as Options
from raycd.config.settings import parse as parse
from raycd.errors import ConfigError
from raycd.program import AGAIN as AGAIN
from raycd.program import ANEW as ANEW
from raycd.program import EXIT_MISTAKE as EXIT_MISTAKE
from raycd.program import EXIT_RAY_DIED as EXIT_RAY_DIED
from raycd.program import EXIT_TERMINATED as EXIT_TERMINATED
from raycd.program import Terminated as Terminated
from raycd.program import causes as causes
from raycd.program import guard as guard
from raycd.program import sigterm_interrupts as sigterm_interrupts
from raycd.program import terminated as terminated
from raycd.redact import without_passwords


def run(
    main: Callable[[Options], int | None],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    flags: Callable[[argparse.ArgumentParser], object] | None = None,
    again: str = AGAIN,
) -> int:
    """Read the settings of a job, call `main` under the guard, and return the exit code.

    `flags` adds the job's own options; `again` tells someone who has interrupted it whether the
    same command goes on or starts over.
    """
    argv = sys.argv[1:] if argv is None else argv
    runs = ""

    def job() -> int | None:
        nonlocal runs
        options = parse(argv, prog=prog, description=description, flags=flags)
        runs = options.config.runs
        return main(options)

    return guard(job, argv, again=again, runs=lambda: runs)


def at_least(option: str, given: float, least: int) -> None:
    """Raise ConfigError where the number of an option is smaller."""
    if given < least:
        raise ConfigError(f"{option}: impossible value", got=given, expected=f"{least} or more")


def local(option: str, named: str, what: str = "folder") -> Path:
    """Return the folder or file that an option names. Raise ConfigError for one of a store."""
    if "://" in named:
        raise ConfigError(
            f"{option} is a {what} of this machine, not of a store",
            got=without_passwords(named),
            expected="a path",
            do=f"name a {what}, and copy it to or from the store with the store's own tool",
        )
    return Path(named)
