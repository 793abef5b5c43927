"""Complete configurations by name: the YAML files of this folder.

A preset states what it changes from the defaults in `raycd.config`; a user's own YAML goes on top
of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from raycd.config import layers
from raycd.errors import ConfigError


def names() -> list[str]:
    """Return the presets' names, in alphabetical order."""
    files = resources.files(__name__).iterdir()
    return sorted(Path(file.name).stem for file in files if file.name.endswith(".yaml"))


def load(name: str) -> Mapping[str, object]:
    """Return the settings of a preset, `preset` among them. Raises ConfigError for another name."""
    if name not in names():
        raise ConfigError("unknown preset", got=name, expected="one of: " + ", ".join(names()))
    text = resources.files(__name__).joinpath(f"{name}.yaml").read_bytes()
    return {**layers.parse_yaml(text, source=f"preset {name}"), "preset": name}
