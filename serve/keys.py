"""Makes, lists and revokes the API keys of a service. A running service follows within a second.

    python serve/keys.py add --file keys.json --name alice --scope write    prints the new key, once
    python serve/keys.py add --file keys.json --name bob --scope read --galleries shoes hats
    python serve/keys.py list --file keys.json
    python serve/keys.py remove --file keys.json --name alice

Exit codes: raycd/program.py.
"""

import argparse
import os
import pwd
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from raycd.config import cli
from raycd.durable import PRIVATE_FILE, file_lock, replace_file
from raycd.errors import ConfigError
from serve.args.galleries import DEFAULT, NAMED, is_name
from serve.security import keyring
from serve.security.keyring import Key, KeyDocument, Scope

PREFIX = "raycd_"  # tells people, and programs that look for leaked secrets, what the text is
RANDOM_BYTES = 32


def main(argv: Sequence[str] | None = None, prog: str = "serve/keys.py") -> int:
    """Change or show a file of keys, and return the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    options = _parser(prog).parse_args(argv)
    return cli.guard(lambda: options.run(options), argv)


def add(file: Path, name: str, scope: Scope, galleries: Sequence[str] | None = None) -> str:
    """Make a key and keep its hash in `file`, which is made where there is none. Returns the key.

    `galleries` are those that it is for; None: all.

    Raises:
        ConfigError: The name is impossible or taken, or that of a gallery is impossible, or the
            file is malformed or cannot be written.
    """
    key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    if wrong := [gallery for gallery in galleries or () if not is_name(gallery)]:
        raise ConfigError("no gallery can have this name", got=repr(wrong[0]), expected=NAMED)
    try:
        kept = Key(
            name=name,
            scope=scope,
            sha256=keyring.digest(key),
            created=datetime.now(UTC).date(),
            galleries=None if galleries is None else tuple(galleries),
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
    """Revoke a key. Raises ConfigError where there is none, or the file cannot be changed."""
    keyring.read(file)  # one that is not there is an error, not made
    with _changing(file) as keys:
        if name not in keys:
            raise ConfigError(
                f"there is no key of the name {name}",
                expected=", ".join(keys) or "nothing: it is empty",
            )
        del keys[name]


@contextmanager
def _changing(file: Path) -> Iterator[dict[str, Key]]:
    """Yield the keys of `file` by name, to be changed; then the file is replaced as a whole."""
    file = file.resolve()  # what a link points to is replaced, not the link
    try:
        if not file.parent.is_dir():
            raise ConfigError(
                "the folder of the file of API keys is not there",
                got=file.parent,
                do="make it, or name another file",
            )
        with file_lock(file.parent, wait=False):  # of the folder: no lock file stays behind
            keys = {key.name: key for key in keyring.read(file)} if file.exists() else {}
            yield keys
            # A key of all galleries stands there as it did before there were several.
            document = KeyDocument(keys=tuple(keys.values())).model_dump_json(
                indent=2, exclude_none=True
            )
            with replace_file(file, mode=PRIVATE_FILE) as fresh:
                fresh.write_text(f"{document}\n", encoding="utf-8")
                _keep_owner(fresh, file)
    except BlockingIOError as error:
        raise ConfigError(
            "somebody else changes the file of API keys",
            got=f"{error.filename} is locked",
            do="try again",
        ) from None
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(file: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the file of API keys cannot be written: {file}",
        got=error.strerror,
        do="choose a folder that you may write",
    )


def _keep_owner(fresh: Path, file: Path) -> None:
    """Let everybody read the new file who could read the old one, or raise ConfigError."""
    if not file.exists():
        return
    old = file.stat()
    fresh.chmod(stat.S_IMODE(old.st_mode))
    for uid, gid in ((-1, old.st_gid), (old.st_uid, -1)):
        with suppress(PermissionError):  # only root gives files away, but to groups of its own
            os.chown(fresh, uid, gid)
    if old.st_mode & stat.S_IROTH:
        return
    new, group_reads = fresh.stat(), bool(old.st_mode & stat.S_IRGRP)
    owner_reads = new.st_uid == old.st_uid or (group_reads and _is_in(old.st_uid, old.st_gid))
    if not owner_reads or (group_reads and new.st_gid != old.st_gid):
        raise ConfigError(
            "whoever reads the file of API keys now could not read the new one",
            got=f"{file} of the user {old.st_uid} and the group {old.st_gid}",
            do="run this as root, or as that user and a member of that group",
        )


def _is_in(uid: int, gid: int) -> bool:
    """Tell whether a user is in a group."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    return gid in os.getgrouplist(user.pw_name, user.pw_gid)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, description="Make, list and revoke API keys of a service."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, text in (
        ("add", _add, "Make a key, print it once and keep its hash."),
        ("list", _list, "Show names, scopes, dates and galleries."),
        ("remove", _remove, "Revoke a key."),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--file", type=Path, required=True, help="The one that the service gets by --api-keys."
        )
        command.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        command.set_defaults(run=run)
        if name != "list":
            command.add_argument("--name", required=True, help="Whose key, or what for.")
        if name == "add":
            command.add_argument(
                "--scope", choices=("read", "write"), required=True, help="write includes read."
            )
            command.add_argument(
                "--galleries",
                nargs="+",
                metavar="GALLERY",
                help=f"Which it is for; the service's own is {DEFAULT}. (all)",
            )
    return parser


def _add(options: argparse.Namespace) -> None:
    key = add(options.file, options.name, options.scope, options.galleries)
    print("This is the only time that the key is shown:", file=sys.stderr, flush=True)
    print(key)


def _list(options: argparse.Namespace) -> None:
    for key in keyring.read(options.file):
        galleries = "" if key.galleries is None else f" {' '.join(key.galleries)}"
        print(f"{key.name:<20} {key.scope:<5} {key.created}{galleries}")


def _remove(options: argparse.Namespace) -> None:
    remove(options.file, options.name)


if __name__ == "__main__":
    sys.exit(main())
