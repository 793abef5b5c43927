"""The name and the folder of a run."""

from __future__ import annotations

import os.path
import posixpath

from raycd.config import Config
from raycd.data.folder import is_local
from raycd.errors import ConfigError
from raycd.run import Run


def run_name(config: Config) -> str:
    """Return the run's name, that of its folder in `config.runs`.

    Raises:
        ConfigError: The configuration has neither a name nor a preset.
    """
    name = config.name or config.preset
    if not name:
        raise ConfigError(
            "the run has no name", do="give it one (--name my-run), or start from a --preset"
        )
    return name


def run_folder(config: Config) -> Run:
    """Return the run that a configuration names.

    Raises:
        ConfigError: The configuration has no name.
        RunError: The folder belongs to another run.
    """
    root = config.data.root
    if root and is_local(root):
        root = os.path.abspath(os.path.expanduser(root))
    return Run(
        posixpath.join(config.runs, run_name(config)), {"format": config.data.format, "root": root}
    )
