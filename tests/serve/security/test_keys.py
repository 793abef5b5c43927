"""API keys: their file, the command that changes it, and the check of a key."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from raycd.durable import file_lock
from raycd.errors import ConfigError
from serve import keys
from serve.security import keyring
from serve.security.keyring import CHECK_S, Keyring

ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


class Clock:
    """A clock that stands until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.LogCaptureFixture]:
    """Return what is logged; Ray Serve, once it runs, keeps its logger from the root, where
    pytest listens.
    """
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, "ray.serve"):
        yield caplog


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "serve" / "keys.py"), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_prints_a_new_key_once_and_keeps_only_its_hash(file: Path) -> None:
    made = command("add", "--file", file, "--name", "alice", "--scope", "write")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert re.fullmatch(r"raycd_[A-Za-z0-9_-]{43}", key)  # 32 bytes
    assert key not in made.stderr
    assert json.loads(file.read_text()) == {
        "keys": [
            {
                "name": "alice",
                "scope": "write",
                "sha256": hashlib.sha256(key.encode()).hexdigest(),
                "created": datetime.now(UTC).date().isoformat(),
            }
        ]
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_the_command_lists_and_removes_keys_by_name(file: Path) -> None:
    keys.add(file, "alice", "write")
    bob = keys.add(file, "bob", "read")
    listed = command("list", "--file", file)
    assert [line.split()[:2] for line in listed.stdout.splitlines()] == [
        ["alice", "write"],
        ["bob", "read"],
    ]
    assert hashlib.sha256(bob.encode()).hexdigest() not in listed.stdout
    assert command("remove", "--file", file, "--name", "alice").returncode == 0
    assert [key.name for key in keyring.read(file)] == ["bob"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "--name", "alice", "--scope", "read"), "there is a key of the name alice"),
        (("add", "--name", "al ice", "--scope", "read"), "the name of the key is impossible"),
        (("remove", "--name", "bob"), "there is no key of the name bob"),
    ],
)
def test_the_command_tells_a_mistake_and_changes_nothing(
    file: Path, arguments: tuple[str, ...], said: str
) -> None:
    keys.add(file, "alice", "write")
    before = file.read_bytes()
    ended = command(arguments[0], "--file", file, *arguments[1:])
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert f"error: {said}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


@pytest.mark.parametrize("arguments", [("list",), ("remove", "--name", "alice")])
def test_the_command_tells_that_there_is_no_file_and_makes_none(
    file: Path, arguments: tuple[str, ...]
) -> None:
    ended = command(arguments[0], "--file", file, *arguments[1:])
    assert ended.returncode == 2
    assert "the file of API keys cannot be read" in ended.stderr
    assert not file.exists()


def a_key(**members: str) -> str:
    whole = {
        "name": "alice",
        "scope": "read",
        "sha256": "0" * 64,
        "created": "2026-01-31",
        **members,
    }
    return json.dumps(whole)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "Invalid JSON"),
        ("\x00\xff", "Invalid JSON"),
        ("[]", "should be an object"),
        ("{}", "keys: Field required"),
        (
            f'{{"keys": [{a_key(scope="admin")}]}}',
            "keys.0.scope: Input should be 'read' or 'write'",
        ),
        (f'{{"keys": [{a_key(sha256="raycd_s3cret")}]}}', "keys.0.sha256: String should match"),
        (f'{{"keys": [{a_key(created="yesterday")}]}}', "keys.0.created"),
        (f'{{"keys": [{a_key()}, {a_key()}]}}', "doubled names: alice"),
    ],
)
def test_a_malformed_file_is_told_without_what_it_holds(
    file: Path, content: str, said: str
) -> None:
    file.write_text(content, "latin-1")
    with pytest.raises(ConfigError, match="malformed") as caught:
        keyring.read(file)
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="malformed"):
        keys.add(file, "bob", "read")
    assert file.read_text("latin-1") == content


def test_a_file_that_somebody_else_changes_is_left_alone(file: Path) -> None:
    keys.add(file, "alice", "write")
    before = file.read_bytes()
    with (
        file_lock(file.parent),
        pytest.raises(ConfigError, match="somebody else changes") as caught,
    ):
        keys.add(file, "bob", "read")
    assert str(file.parent) in str(caught.value)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_whoever_could_read_the_file_still_can_and_a_link_stays_one(file: Path) -> None:
    keys.add(file, "alice", "write")
    file.chmod(0o640)
    link = file.with_name("link.json")
    link.symlink_to(file)
    keys.add(link, "bob", "read")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert link.is_symlink()
    assert [key.name for key in keyring.read(file)] == ["alice", "bob"]


def test_a_key_is_found_by_itself_and_nothing_else_is(file: Path) -> None:
    alice, bob = keys.add(file, "alice", "write"), keys.add(file, "bob", "read")
    ring = Keyring(file)
    assert [key.name for key in (ring.find(alice), ring.find(bob)) if key] == ["alice", "bob"]
    stored = hashlib.sha256(alice.encode()).hexdigest()
    for wrong in ("", alice[:-1], alice + "x", alice.upper(), stored, "schlüssel"):
        assert ring.find(wrong) is None


def test_a_file_without_keys_lets_nobody_in(file: Path) -> None:
    alice = keys.add(file, "alice", "write")
    keys.remove(file, "alice")
    assert Keyring(file).find(alice) is None


@pytest.mark.parametrize("which", [0, 1, 2, None])
def test_a_key_is_compared_with_every_stored_one_in_constant_time(
    file: Path, monkeypatch: pytest.MonkeyPatch, which: int | None
) -> None:
    made = [keys.add(file, name, "read") for name in ("alice", "bob", "carol")]
    ring = Keyring(file)
    compare, compared = hmac.compare_digest, []

    def counted(stored: str, given: str) -> bool:
        compared.append(stored)
        return compare(stored, given)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    found = ring.find("raycd_unknown" if which is None else made[which])
    assert (found is None) == (which is None)
    assert compared == [hashlib.sha256(key.encode()).hexdigest() for key in made]


def test_keys_are_added_and_revoked_while_the_service_runs(file: Path, clock: Clock) -> None:
    alice = keys.add(file, "alice", "write")
    ring = Keyring(file, clock)
    bob = keys.add(file, "bob", "read")
    keys.remove(file, "alice")
    assert ring.find(alice)  # the file is looked at once a second
    assert ring.find(bob) is None
    clock.now += CHECK_S
    assert ring.find(alice) is None
    assert ring.find(bob)


def gone(file: Path) -> None:
    file.unlink()


def malformed(file: Path) -> None:
    file.write_text("{")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("spoil", [gone, malformed, a_folder])
def test_a_file_that_spoils_leaves_the_last_keys_in_force_and_is_logged_once(
    file: Path, clock: Clock, log: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    alice = keys.add(file, "alice", "write")
    ring = Keyring(file, clock)
    spoil(file)
    for _ in range(3):
        clock.now += CHECK_S
        assert ring.find(alice)
    assert [record.levelname for record in log.records] == ["ERROR"]
    assert "last stay in force" in log.text
    for secret in (alice, alice.removeprefix(keys.PREFIX), str(file), str(file.parent)):
        assert secret not in log.text


def test_a_mended_file_is_read_again(
    file: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    alice = keys.add(file, "alice", "write")
    ring = Keyring(file, clock)
    file.write_text("{")
    clock.now += CHECK_S
    assert ring.find(alice)
    file.unlink()
    bob = keys.add(file, "bob", "read")
    clock.now += CHECK_S
    assert ring.find(bob)
    assert ring.find(alice) is None
    file.unlink()
    clock.now += CHECK_S
    assert ring.find(bob)
    assert len(log.records) == 2


def test_a_file_that_cannot_be_read_at_first_is_a_mistake(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Keyring(file)


def test_a_folder_that_is_not_there_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder of the file of API keys is not there"):
        keys.add(tmp_path / "new" / "keys.json", "ann", "read")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("other_user", "other_group", "mode", "in_group", "may"),
    [
        (True, False, 0o600, True, False),
        (True, False, 0o640, True, True),  # who read by the owner's right now reads by the group's
        (True, False, 0o640, False, False),
        (False, True, 0o640, True, False),  # the group that read is another one now
        (True, True, 0o644, False, True),
    ],
)
def test_whoever_could_read_the_file_can_read_the_new_one_or_the_old_one_stays(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    other_user: bool,
    other_group: bool,
    mode: int,
    in_group: bool,
    may: bool,
) -> None:
    keys.add(file, "ann", "read")
    file.chmod(mode)
    before, real = file.read_bytes(), Path.stat

    def of_another(path: Path, **options: bool) -> os.stat_result:
        found = list(real(path, **options))
        if path == file:
            found[stat.ST_UID] += other_user
            found[stat.ST_GID] += other_group
        return os.stat_result(found)

    def refused(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", of_another)
    monkeypatch.setattr(os, "chown", refused)
    monkeypatch.setattr(keys, "_is_in", lambda uid, gid: in_group)
    if may:
        keys.remove(file, "ann")
        assert not keyring.read(file)
        return
    with pytest.raises(ConfigError, match="could not read the new one"):
        keys.remove(file, "ann")
    assert file.read_bytes() == before
