"""The lease of a run on a store: one process has it, whatever becomes of the process."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem

from raycd.errors import RaycdError, RunError
from raycd.run import Run, alone, open_uri
from raycd.stores import lease
from raycd.stores.lease import FolderLease

IDENTITY = {"format": "x"}
RENEWED, EXPIRES = 0.2, 1.5


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED", RENEWED)
    monkeypatch.setattr(lease, "EXPIRES", EXPIRES)


@pytest.fixture(params=["memory", "s3", "folder without locks"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder without locks":

        def refuse(*_: object, **__: object) -> bool:
            raise OSError(errno.ENOSYS, "Function not implemented")  # Lustre without -o flock

        monkeypatch.setattr("raycd.durable.lock_descriptor", refuse)
        return str(tmp_path / "run")
    if request.param == "s3":
        request.getfixturevalue("s3")
        return f"s3://raycd/{tmp_path.name}"
    return f"memory://{tmp_path.name}"


def objects(root: str) -> list[str]:
    store, path = open_uri(root)
    return sorted(name.rpartition("/")[2] for name in store.find(f"{path}/{lease.FOLDER}"))


def test_a_run_on_a_store_is_refused_to_a_second_job_with_its_holder_and_is_free_afterwards(
    root: str,
) -> None:
    run = Run(root, IDENTITY)
    with run.locked():
        with (
            pytest.raises(
                RunError,
                match=rf"is in use\n.*process {os.getpid()} on \S+, since 20.* UTC, works on it",
            ),
            Run(root, IDENTITY).locked(),
        ):
            pass
        run.write_bytes("report.html", b"mine")
    began = time.monotonic()
    with Run(root, IDENTITY).locked():
        assert time.monotonic() - began < EXPIRES / 2, "what was released is not waited for"
    assert objects(root) == ["00000002.json"]


def test_of_many_jobs_that_start_at_once_one_gets_the_run(root: str) -> None:
    inside, most = [0], [0]

    def hold(_: int) -> bool:
        with suppress(RunError), alone(root, RunError):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(3 * RENEWED)
            inside[0] -= 1
            return True
        return False

    with ThreadPoolExecutor(8) as threads:
        held = list(threads.map(hold, range(8)))
    assert most == [1]
    assert sum(held) >= 1


def test_of_two_who_see_none_one_creates_it(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalFileSystem, "exists", lambda self, path: False)
    first, second = FolderLease(*open_uri(root), root), FolderLease(*open_uri(root), root)
    first.take(RunError, print)
    assert not second._created(1)
    first.renew()


HOLD = """
import sys
from raycd.stores import lease
from raycd.run import Run
lease.RENEWED, lease.EXPIRES = 0.2, 1.5
run = Run(sys.argv[1], {"format": "x"})
try:
    with run.locked():
        print("held", flush=True)
        sys.stdin.read()
except Exception as error:
    print(type(error).__name__, str(error).replace(chr(10), " "), flush=True)
"""


@pytest.fixture
def holder(s3: dict[str, str], tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    root = f"s3://raycd/{tmp_path.name}"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, root],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield root, process
        process.kill()


def test_the_lease_of_a_process_that_was_killed_is_taken_once_it_has_expired(
    holder: tuple[str, subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, process = holder
    with pytest.raises(RunError, match=f"process {process.pid} on"), Run(root, IDENTITY).locked():
        pass
    process.kill()
    process.wait()
    began = time.monotonic()
    with Run(root, IDENTITY).locked():
        assert EXPIRES <= time.monotonic() - began < 4 * EXPIRES
    assert f"is held: process {process.pid} on" in capsys.readouterr().err


def test_a_process_that_was_asleep_while_another_took_its_run_is_interrupted(
    holder: tuple[str, subprocess.Popen[str]],
) -> None:
    root, process = holder
    process.send_signal(signal.SIGSTOP)
    with Run(root, IDENTITY).locked():
        process.send_signal(signal.SIGCONT)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("RunError")
        assert f"process {os.getpid()} on" in said
        assert "has taken it" in said
    assert objects(root) == ["00000002.json"]


def test_who_has_lost_a_run_is_interrupted_and_writes_nothing_into_it(root: str) -> None:
    run, others = Run(root, IDENTITY), FolderLease(*open_uri(root), root)

    def work() -> None:
        with run.locked():
            assert others._created(2)
            time.sleep(5 * RENEWED)
            run.write_bytes("report.html", b"late")

    with pytest.raises(RunError, match="has taken it"):
        work()
    others.release()

    def work_in_a_thread() -> None:
        """Work where no interrupt arrives: the write is refused."""
        with run.locked():
            assert others._created(4)
            time.sleep(3 * RENEWED)
            run.write_bytes("report.html", b"late")

    with ThreadPoolExecutor(1) as threads, pytest.raises(RunError, match="has taken it"):
        threads.submit(work_in_a_thread).result()
    assert not run.exists("report.html")
    others.release()

    def finish_a_stage() -> None:
        with run.locked(), run.writing("mine", "f"):
            assert others._created(6)
            time.sleep(3 * RENEWED)

    with ThreadPoolExecutor(1) as threads, pytest.raises(RunError, match="has taken it"):
        threads.submit(finish_a_stage).result()
    assert run.record("mine") is None
    assert objects(root) == ["00000006.json"]


def test_a_renewal_that_ends_after_the_lease_has_expired_counts_from_its_beginning(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = FolderLease(*open_uri(root), root), FolderLease(*open_uri(root), root)
    first.take(RunError, print)
    look = first._last

    def and_sleep(**how: bool) -> lease.Found:
        found = look(**how)
        time.sleep(EXPIRES)
        assert second._created(2)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(first, "_last", and_sleep)
        first.renew()
    with pytest.raises(RunError, match="has taken it"):
        first.check()


@pytest.mark.parametrize("holder_asleep", [False, True])
def test_a_watcher_that_was_asleep_looks_again_before_it_takes_a_lease(
    root: str, holder_asleep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = FolderLease(*open_uri(root), root), FolderLease(*open_uri(root), root)
    first.take(RunError, print)
    look, looked = second._last, [0]

    def and_sleep(**how: bool) -> lease.Found:
        found = look(**how)
        looked[0] += 1
        if looked[0] == 2:
            time.sleep(1.2 * EXPIRES)
        if looked[0] == (4 if holder_asleep else 2):
            first.renew()
        return found

    monkeypatch.setattr(second, "_last", and_sleep)
    with pytest.raises(RunError, match=f"process {os.getpid()} on"):
        second.take(RunError, print)
    first.check()


def test_who_creates_an_object_that_others_have_removed_meanwhile_has_come_too_late(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = FolderLease(*open_uri(root), root)
    create, holders = late._created, list[FolderLease]()

    def come_late(number: int) -> bool:
        if not holders:
            holders.extend(FolderLease(*open_uri(root), root) for _ in range(2))
            holders[0].take(RunError, print)
            holders[0].release()
            holders[1].take(RunError, print)
        return create(number)

    monkeypatch.setattr(late, "_created", come_late)
    with pytest.raises(RunError, match=f"process {os.getpid()} on"):
        late.take(RunError, print)
    assert objects(root) == ["00000002.json"]
    holders[1].renew()


def test_a_store_that_answers_nonsense_does_not_end_the_renewals(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = f"memory://{tmp_path.name}"
    store, _ = open_uri(root)
    put, wrong = store.pipe_file, [True]

    def pipe_file(*given: object, **more: object) -> object:
        if wrong[0]:
            raise FileExistsError
        return put(*given, **more)

    with alone(root, RunError) as held:
        assert held is not None
        monkeypatch.setattr(store, "pipe_file", pipe_file)
        time.sleep(2 * RENEWED)
        wrong[0], before = False, held._beat
        time.sleep(4 * RENEWED)
        assert held._last()[1]["beat"] > before


def test_an_interrupt_comes_inside_of_the_block_or_not_at_all(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others, interrupting, kill = (
        FolderLease(*open_uri(root), root),
        threading.Event(),
        signal.pthread_kill,
    )

    def late(thread: int, number: int) -> None:
        interrupting.set()
        time.sleep(2 * RENEWED)
        kill(thread, number)

    monkeypatch.setattr(signal, "pthread_kill", late)

    def end_while_interrupted() -> None:
        with alone(root, RunError):
            assert others._created(2)
            assert interrupting.wait(10 * RENEWED)
        time.sleep(3 * RENEWED)

    with pytest.raises(RunError, match="has taken it"):
        end_while_interrupted()


def test_what_an_interrupt_became_on_its_way_is_told_as_the_loss_of_the_lease(root: str) -> None:
    def work() -> None:
        with alone(root, RunError):
            assert FolderLease(*open_uri(root), root)._created(2)
            try:
                time.sleep(10 * RENEWED)
            except KeyboardInterrupt:
                raise ValueError("aborted") from None

    with pytest.raises(RunError, match="has taken it"):
        work()


def without(monkeypatch: pytest.MonkeyPatch, store: AbstractFileSystem, answer: str) -> None:
    """Have a store that ignores conditions, or does not know them."""
    put: Callable[..., object] = store.pipe_file

    def pipe_file(path: str, data: bytes, mode: str = "overwrite") -> object:
        if mode == "create" and answer == "refuses":
            raise NotImplementedError("If-None-Match")
        return put(path, data)

    monkeypatch.setattr(store, "pipe_file", pipe_file)


@pytest.mark.parametrize("answer", ["ignores", "refuses"])
def test_a_store_without_conditional_puts_is_told_and_one_of_two_jobs_still_ends(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answer: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = f"memory://{tmp_path.name}"
    store, path = open_uri(root)
    without(monkeypatch, store, answer)
    first, second = FolderLease(store, path, root), FolderLease(store, path, root)
    told: list[str] = []
    first.take(RunError, told.append)
    assert ["ignores conditional writes" in each for each in told] == [True]
    second._created(1)
    second.check()
    with pytest.raises(RunError, match="has taken it"):
        first.renew()


def test_a_store_that_does_not_answer_for_a_while_takes_the_lease_from_nobody(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Run(f"s3://raycd/{tmp_path.name}", IDENTITY)
    with run.locked():
        put, failing = S3FileSystem.pipe_file, [True]

        def pipe_file(*given: object, **more: object) -> object:
            if failing[0]:
                raise TimeoutError
            return put(*given, **more)

        monkeypatch.setattr(S3FileSystem, "pipe_file", pipe_file)
        time.sleep(1.5 * EXPIRES)
        failing[0] = False
        run.write_json("metrics.json", 1)
    assert run.read_json("metrics.json") == 1


def test_a_lease_that_cannot_be_read_is_no_reason_to_wait_for_ever(root: str) -> None:
    store, path = open_uri(root)
    store.makedirs(f"{path}/{lease.FOLDER}", exist_ok=True)
    store.pipe_file(f"{path}/{lease.FOLDER}/00000007.json", b"{")
    with alone(root, RunError):
        assert objects(root) == ["00000008.json"]
    content = json.loads(store.cat_file(f"{path}/{lease.FOLDER}/00000008.json"))
    assert content["holder"] == ""


def test_a_lease_in_a_bucket_that_is_not_there_is_an_error(s3: dict[str, str]) -> None:
    with (
        pytest.raises(RaycdError, match="there is no bucket s3://no-such"),
        alone("s3://no-such/run", RunError),
    ):
        pass


def test_a_lease_on_a_store_of_real_folders_makes_its_own(tmp_path: Path) -> None:
    store, path = LocalFileSystem(auto_mkdir=False, skip_instance_cache=True), str(tmp_path / "one")
    listed = store.ls
    store.ls = lambda path, detail=False: listed(path, detail)  # sftp's takes nothing else
    held = FolderLease(store, path, f"sftp://host{path}")
    held.take(RunError, print)
    held.renew()
    assert [each.name for each in Path(path, lease.FOLDER).iterdir()] == ["00000001.json"]
