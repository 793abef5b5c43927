"""The extras of the package: which of them installs a package that is missing.

`pip install raycd` is the client of the service alone. Whoever imports more without its extra is
told here which one to install: as the ModuleNotFoundError of a room of the library, and as the one
message of a program.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from raycd.errors import ConfigError

WHOLE = "cpu"
"""The extra that installs all of raycd but what is in OF."""
OF = {
    "boto3": "s3",
    "milvus_lite": "",  # in none: it asks for faiss-cpu, which [gpu] excludes
    "peft": "lora",
    "psycopg": "postgres",
    "pymilvus": "milvus",
    "s3fs": "s3",
    "sentence_transformers": "joint",
    "sentencepiece": "hf",
    "transformers": "hf",
}
"""Packages that stand in an extra of their own."""
NEEDED = ("torch", "ray", "faiss")
"""Packages by which an installation of the whole is known."""
CLIENT = {
    *("api", "client", "errors", "extras", "filters", "names", "program", "progress", "redact"),
    "retry_after",
    "requests",
}
"""Modules of raycd that the base dependencies are enough for."""


def install(package: str) -> str:
    """Return the command that installs what `package`, a name as it is imported, belongs to."""
    extra = OF.get(package, WHOLE)
    if not extra:
        return f"pip install {package.replace('_', '-')}"
    gpu = ", or 'raycd[gpu]' where FAISS shall use a GPU" if extra == WHOLE else ""
    return f"pip install 'raycd[{extra}]'{gpu}"


def require(package: str, what: str) -> None:
    """Raise ConfigError where the package that `what` needs is not installed."""
    if not _is_installed(package):
        raise _missing(package, what)


def error(failure: ModuleNotFoundError) -> ConfigError | None:
    """Return the message of a failed import; None where no extra would have prevented it."""
    package = (failure.name or "").partition(".")[0]
    if package not in OF and all(map(_is_installed, NEEDED)):
        return None  # in a whole installation this is a bug of ours
    return _missing(package, "this part of raycd")


def tell_of_rooms() -> None:
    """Have imports of raycd's rooms say what to install, where only the client is installed.

    That is where torch is not: some rooms need no Ray (MLflow's model) or no FAISS (flat mining).
    """
    is_told = any(isinstance(finder, _Rooms) for finder in sys.meta_path)
    if not _is_installed("torch") and not is_told:
        sys.meta_path.insert(0, _Rooms())


class _Rooms(MetaPathFinder):
    """A finder that finds nothing, and refuses the rooms that the client does not need."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, room = name.partition(".")
        if package == "raycd" and "." not in room and room not in CLIENT | {""}:
            raise ModuleNotFoundError(
                f"{name} needs torch, and only raycd's client is installed: {install('torch')}",
                name="torch",
            )
        return None


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def _missing(package: str, what: str) -> ConfigError:
    return ConfigError(
        f"{what} needs the package {package.replace('_', '-')}",
        got="it is not installed",
        do=install(package),
    )
