"""Makes, lists and revokes the API keys of a service. A running service follows within a second.

    python serve/keys.py add --file keys.json --name alice --scope write      prints the new key, once
    python serve/keys.py list --file keys.json
    python serve/keys.py remove --file keys.json --name alice

Exit codes: 0 done, 2 a mistake that the user can mend.
"""

import argparse
import os
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from raycd.config.cli import EXIT_MISTAKE
from raycd.errors import ConfigError, RaycdError
from serve.security import keyring
from serve.security.keyring import Key, KeyDocument, Scope

PREFIX = "raycd_"  # tells people, and programs that look for leaked secrets, what the text is
RANDOM_BYTES = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Change or show a file of keys; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except RaycdError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    return 0


def add(file: Path, name: str, scope: Scope) -> str:
    """Make a key and keep its hash in `file`, which is made where there is none. Returns the key.

    Raises:
        ConfigError: The name is impossible or taken, or the file is malformed or cannot be written.
    """
    key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    try:
        kept = Key(
            name=name, scope=scope, sha256=keyring.digest(key), created=datetime.now(UTC).date()
        )
    except ValidationError:
        raise ConfigError(
            "the name of the key is impossible",
            got=repr(name),
            expected="1 to 64 letters, digits or . _ @ -",
        ) from None
    with _changing(file) as keys:
        if name in keys:
            raise ConfigError(
                f"there is a key of the name {name}",
                do="take another name, or remove that key first",
            )
        keys[name] = kept
    return key


def remove(file: Path, name: str) -> None:
    """Revoke a key. Raises ConfigError where there is none of this name, or the file cannot be read
    or written.
    """
    keyring.read(file)  # one that is not there is told, not made
    with _changing(file) as keys:
        if name not in keys:
            raise ConfigError(
                f"there is no key of the name {name}",
                expected=", ".join(keys) or "nothing: it is empty",
            )
        del keys[name]


@contextmanager
def _changing(file: Path) -> Iterator[dict[str, Key]]:
    """The keys of `file` by name, to be changed; without an error the file is replaced at once, as
    a whole.
    """
    file = file.resolve()  # what a link points to is replaced, not the link
    fresh = file.with_name(f".{file.name}.lock")  # the new file is the lock as well, as git does it
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            "somebody else changes the file of API keys",
            got=f"{fresh} is there",
            do="try again; where no other serve/keys.py runs, delete that file",
        ) from None
    except OSError as error:
        raise _unwritable(file, error) from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            keys = {key.name: key for key in keyring.read(file)} if file.exists() else {}
            yield keys
            out.write(KeyDocument(keys=tuple(keys.values())).model_dump_json(indent=2) + "\n")
            out.flush()
            _keep_owner(out.fileno(), file)
            os.fsync(out.fileno())
        fresh.replace(file)
    except BaseException as error:  # not `finally`: once it is renamed, a lock there is another's
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(file, error) from None
        raise


def _unwritable(file: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the file of API keys cannot be written: {file}",
        got=error.strerror,
        do="choose a folder that you may write",
    )


def _keep_owner(descriptor: int, file: Path) -> None:
    """Let everybody read the new file who could read the old one."""
    if file.exists():
        old = file.stat()
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
        with suppress(PermissionError):  # only root gives files away
            os.fchown(descriptor, old.st_uid, old.st_gid)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve/keys.py", description="Make, list and revoke API keys of a service."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("add", _add, "Make a key, print it once and keep its hash."),
        ("list", _list, "Show names, scopes and dates."),
        ("remove", _remove, "Revoke a key."),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--file", type=Path, required=True, help="The one that the service gets by --api-keys."
        )
        command.set_defaults(run=run)
        if name != "list":
            command.add_argument("--name", required=True, help="Whose key, or what for.")
        if name == "add":
            command.add_argument(
                "--scope", choices=("read", "write"), required=True, help="write includes read."
            )
    return parser


def _add(options: argparse.Namespace) -> None:
    key = add(options.file, options.name, options.scope)
    print("This is the only time that the key is shown:", file=sys.stderr, flush=True)
    print(key)


def _list(options: argparse.Namespace) -> None:
    for key in keyring.read(options.file):
        print(f"{key.name:<20} {key.scope:<5} {key.created}")


def _remove(options: argparse.Namespace) -> None:
    remove(options.file, options.name)


if __name__ == "__main__":
    sys.exit(main())
