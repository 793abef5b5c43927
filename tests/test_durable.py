import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raycd.durable import (
    create_folder_once,
    file_lock,
    remove_halves,
    replace_file,
    replace_folder,
    sha256,
)

HOLD = """
import sys
from pathlib import Path
from raycd.durable import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def write(folder: Path, text: str, error: type[BaseException] | None = None) -> None:
    with replace_folder(folder) as fresh:
        (fresh / "inner").mkdir()
        (fresh / "inner" / "file").write_text(text)
        assert not folder.exists() or (folder / "inner" / "file").read_text() != text
        if error:
            raise error


def test_the_folder_appears_when_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "bundle"
    for text in ("old", "new"):
        write(folder, text)
        assert (folder / "inner" / "file").read_text() == text
        assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    folder = tmp_path / "bundle"
    write(folder, "old")
    with pytest.raises(error):
        write(folder, "half", error)
    assert (folder / "inner" / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_change_of_names_puts_the_older_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    write(folder, "old")
    rename = Path.rename

    def fail(path: Path, to: Path) -> Path:
        if path.name.endswith(".writing"):
            raise OSError("no")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        write(folder, "new")
    assert (folder / "inner" / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_file_is_replaced_at_once_with_the_rights_that_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for text, mode in (("old", 0o644), ("new", 0o600)):
        with replace_file(file, mode=mode) as fresh:
            fresh.write_text(text)
            assert not file.exists() or file.read_text() != text
        assert (file.read_text(), file.stat().st_mode & 0o777) == (text, mode)
        assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_process_has_left_of_folders_goes_or_comes_back(tmp_path: Path) -> None:
    for name in (".there.4711.replaced", ".gone.4711.replaced", ".new.12.writing", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of").write_text(name)
    (tmp_path / ".lock").touch()
    (tmp_path / ".a.b.unfinished").touch()
    remove_halves(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".a.b.unfinished", ".lock", "gone", "there"]
    assert (tmp_path / "gone" / "of").read_text() == ".gone.4711.replaced"
    assert (tmp_path / "there" / "of").read_text() == "there"


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def fail() -> None:
        with replace_file(file) as fresh:
            fresh.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_is_held_by_one_process_and_ends_with_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    if kind == "folder":
        path.mkdir()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), file_lock(path, wait=False):
            pytest.fail("two hold it")
        if kind == "file":
            assert path.read_text() == str(other.pid)
        other.send_signal(signal.SIGKILL)
    with file_lock(path, wait=False) as locked:
        assert locked
        assert kind == "folder" or path.read_text() == str(os.getpid())


def test_a_block_runs_without_a_lock_where_the_file_system_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("raycd.durable.lock_descriptor", refuse)
    with file_lock(tmp_path, wait=False) as locked:
        assert not locked


def test_a_folder_is_made_once_by_all_who_want_it(tmp_path: Path) -> None:
    made: list[Path] = []

    def fill(fresh: Path) -> None:
        made.append(fresh)
        (fresh / "file").write_text("whole")

    folder = tmp_path / "cache" / "folder"
    threads = [threading.Thread(target=create_folder_once, args=(folder, fill)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (folder / "file").read_text() == "whole"
    assert list(folder.parent.iterdir()) == [folder]


def test_what_is_not_a_regular_file_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256(tmp_path / "file").startswith("ba7816bf")
    with pytest.raises(OSError, match="not a regular file"):
        sha256(tmp_path)
