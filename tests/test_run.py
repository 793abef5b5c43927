import errno
import json
import os
import pickle
import posixpath
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from raycd import stores
from raycd.errors import RunError
from raycd.run import UNFINISHED, Run, fingerprint, local_copy, open_uri

IDENTITY = {"format": "fashioniq", "root": "/data/fashion-iq"}


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a folder, and URIs of stores that are not the local disk."""
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://raycd/{tmp_path.name}/runs/one"
    return (
        str(tmp_path / "runs" / "one")
        if request.param == "local"
        else f"memory://{tmp_path.name}/runs/one"
    )


def write(run: Run, stage: str, text: str, wanted: str = "abc") -> None:
    with run.writing(stage, wanted, inputs=["before"]) as writing:
        (writing.folder / "inner").mkdir()
        (writing.folder / "inner" / "file.txt").write_text(text)
        writing.record["counts"] = {"rows": 3}


def test_a_stage_is_read_as_it_was_written(root: str) -> None:
    run = Run(root, IDENTITY)
    assert run.record("mine") is None
    write(run, "mine", "first")
    record = run.record("mine")
    assert record is not None
    assert record.pop("seconds") >= 0
    assert record == {
        "stage": "mine",
        "fingerprint": "abc",
        "inputs": ["before"],
        "counts": {"rows": 3},
    }
    assert (run.local("mine") / "inner" / "file.txt").read_text() == "first"
    assert run.exists("mine/inner/file.txt")
    assert not run.exists("mine/absent")


def test_a_stage_done_again_replaces_the_old_one_and_every_copy_of_it(root: str) -> None:
    run = Run(root, IDENTITY)
    for text in ("first", "second"):
        write(run, "mine", text, wanted=text)
        assert (run.local("mine") / "inner" / "file.txt").read_text() == text
        assert (local_copy(run.path("mine", "inner")) / "file.txt").read_text() == text
        assert run.local("mine/inner/file.txt").read_text() == text
    assert (run.record("mine") or {})["fingerprint"] == "second"
    assert sorted(path.name for path in run.local("mine").iterdir()) == ["inner", "stage.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_stage_and_nothing_half_written(
    root: str, error: type[BaseException]
) -> None:
    run = Run(root, IDENTITY)
    write(run, "mine", "first")

    def write_half() -> None:
        with run.writing("mine", "def") as writing:
            (writing.folder / "half").write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert (run.record("mine") or {})["fingerprint"] == "abc"
    assert (run.local("mine") / "inner" / "file.txt").read_text() == "first"
    assert not run.exists("mine/half")
    with pytest.raises(error), run.writing("new", "def"):
        raise error
    assert not run.exists("new")
    if run.is_local:
        assert sorted(os.listdir(root)) == ["mine", "run.json"]


def test_what_workers_write_outlives_an_error_and_becomes_a_part_of_the_stage(root: str) -> None:
    run = Run(root, IDENTITY)
    write(run, "embed", "first")

    def embed(wanted: str, *, fails: bool) -> list[str]:
        with run.writing("embed", wanted) as writing:
            file_system, path = open_uri(f"{writing.shared}/images")
            file_system.makedirs(path, exist_ok=True)
            found = sorted(posixpath.basename(name) for name in file_system.find(path))
            file_system.pipe_file(f"{path}/part-{len(found)}", b"shard")
            file_system.pipe_file(f"{path}/.part-9.unfinished", b"of a killed worker")
            (writing.folder / "rest").write_text("rest")
            if fails:
                raise KeyboardInterrupt
        return found

    with pytest.raises(KeyboardInterrupt):
        embed("one", fails=True)
    assert (run.local("embed") / "inner" / "file.txt").read_text() == "first"
    assert embed("other", fails=False) == []
    with pytest.raises(KeyboardInterrupt):
        embed("one", fails=True)
    assert embed("one", fails=False) == [".part-9.unfinished", "part-0"]
    files = [path for path in run.local("embed").rglob("*") if path.is_file()]
    names = sorted(str(path.relative_to(run.local("embed"))) for path in files)
    assert names == ["images/part-0", "images/part-2", "rest", "stage.json"]
    assert run.names(UNFINISHED) == []


def test_what_is_discarded_is_found_whatever_the_folder_is_called(tmp_path: Path) -> None:
    run = Run(str(tmp_path / "shop [1]*"), IDENTITY)
    run.write_bytes(f"{UNFINISHED}/embed-1/images/part-0", b"shard")
    run.write_bytes(f"{UNFINISHED}/mine-1/part-0", b"shard")
    run.discard(f"{UNFINISHED}/embed-*")
    assert run.names(UNFINISHED) == ["mine-1"]


def test_a_stage_is_whole_where_what_is_left_over_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stale(path: str, recursive: bool) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", path)

    run = Run(str(tmp_path), IDENTITY)
    monkeypatch.setattr(run._fs, "rm", stale)
    with run.writing("mine", "abc") as writing:
        Path(writing.shared).mkdir(parents=True)
    assert (run.record("mine") or {})["fingerprint"] == "abc"
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path}/{UNFINISHED}/mine-* is left over: OSError: ")


def test_the_same_identity_opens_a_run_again(root: str) -> None:
    write(Run(root, IDENTITY), "mine", "first")
    assert Run(root, dict(IDENTITY)).record("mine") is not None


def test_a_run_does_not_keep_the_password_of_its_data_and_goes_on_with_another(root: str) -> None:
    for password in ("secret", "secret", "new"):
        run = Run(root, {"root": f"https://ann:{password}@host/data"})
        assert run.read_json("run.json") == {"root": "https://ann:***@host/data"}
    run.write_json("run.json", {"root": "https://ann:secret@host/data"})  # of an earlier raycd
    Run(root, {"root": "https://ann:new@host/data"})
    with pytest.raises(RunError, match=r"belongs to another run\n.*https://bob:\*\*\*@host"):
        Run(root, {"root": "https://bob:secret@host/data"})


def test_another_identity_is_refused_with_the_difference(root: str) -> None:
    Run(root, IDENTITY)
    with pytest.raises(
        RunError, match=r"belongs to another run\n.*root = '/other'\n.*root = '/data/fashion-iq'"
    ):
        Run(root, {**IDENTITY, "root": "/other"})


def test_files_are_replaced_at_once(root: str) -> None:
    run = Run(root, IDENTITY)
    for value in ({"a": 1}, {"a": 2}):
        run.write_json("metrics.json", value)
        assert run.read_json("metrics.json") == value
    run.write_bytes("report.html", b"<html>")
    assert run.local("report.html").read_bytes() == b"<html>"
    run.write_bytes("report.html", b"<html2>")
    assert run.local("report.html").read_bytes() == b"<html2>"
    if run.is_local:
        assert sorted(os.listdir(root)) == ["metrics.json", "report.html", "run.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(str(tmp_path), IDENTITY)
    run.write_bytes("report.html", b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        run.write_bytes("report.html", b"new")
    assert sorted(os.listdir(tmp_path)) == ["report.html", "run.json"]
    assert (tmp_path / "report.html").read_bytes() == b"old"


def test_malformed_json_is_named(root: str) -> None:
    run = Run(root, IDENTITY)
    run.write_bytes("metrics.json", b'{"a": ')
    with pytest.raises(RunError, match=r"metrics\.json is not valid JSON"):
        run.read_json("metrics.json")


@pytest.mark.parametrize("content", [b"{", b"[]", b'"x"'])
def test_a_run_whose_identity_cannot_be_read_is_refused(root: str, content: bytes) -> None:
    Run(root, IDENTITY).write_bytes("run.json", content)
    with pytest.raises(RunError, match=r"run\.json"):
        Run(root, IDENTITY)


def test_a_file_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("mine")
    with pytest.raises(RunError, match="is not a folder"):
        Run(str(tmp_path / "one"), IDENTITY)


def test_a_folder_of_other_things_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"other things than a run\n.*thesis\.tex"):
        Run(str(tmp_path), IDENTITY)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_store_that_does_not_answer_is_told(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()  # it knows the store that answers
    monkeypatch.setattr(stores, "WAITS", (0.0,))
    with pytest.raises(
        RunError, match=r"s3://raycd does not answer\n.*127\.0\.0\.1:9.*s3://raycd/lost \(2 tries\)"
    ):
        Run("s3://raycd/lost", IDENTITY)


def test_what_another_process_writes_on_a_store_is_seen(s3: dict[str, str]) -> None:
    run = Run("s3://raycd/shared", IDENTITY)
    assert run.names("trials") == []
    assert not run.exists("trials/1.json")
    S3FileSystem().pipe_file("raycd/shared/trials/1.json", b"1")
    assert run.exists("trials/1.json")
    assert run.names("trials") == ["1.json"]
    run.discard("trials/1*")
    assert run.names("trials") == []


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(RunError, match="cannot be opened"):
        Run("nonsense://runs/one", IDENTITY)


HOLD = """
import sys
from raycd.run import Run
with Run(sys.argv[1], {"format": "x"}).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_in_use_by_another_process_is_refused_until_it_ends(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        run = Run(str(tmp_path), {"format": "x"})
        with (
            pytest.raises(RunError, match=f"is in use\n.*process {other.pid} works on it"),
            run.locked(),
        ):
            pass
        other.communicate("")
    with run.locked():
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_a_run_that_is_held_is_read_by_other_processes_which_do_not_hold_it(root: str) -> None:
    run = Run(root, IDENTITY)
    write(run, "mine", "first")
    with run.locked():
        sent = pickle.loads(pickle.dumps(run))
    assert (sent.record("mine"), sent.path("mine")) == (run.record("mine"), run.path("mine"))
    assert vars(sent)["_lease"] is None


def test_fingerprints_tell_values_apart_and_not_their_order() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    fingerprints = {
        fingerprint(value) for value in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"b": 1}, [1, 2], [2, 1])
    }
    assert len(fingerprints) == 6


def test_a_copy_of_a_local_folder_is_the_folder(tmp_path: Path) -> None:
    assert local_copy(str(tmp_path)) == tmp_path
    assert local_copy(f"file://{tmp_path}") == tmp_path


def test_the_record_is_readable_json(root: str) -> None:
    run = Run(root, IDENTITY)
    write(run, "mine", "first")
    assert json.loads((run.local("mine") / "stage.json").read_text())["stage"] == "mine"


def test_files_of_a_folder_are_listed_in_order(root: str) -> None:
    run = Run(root, IDENTITY)
    assert run.names("trials") == []
    for number in (2, 0, 1):
        run.write_json(f"trials/{number}.json", {"number": number})
    assert run.names("trials") == ["0.json", "1.json", "2.json"]
    assert run.read_json("trials/2.json") == {"number": 2}
