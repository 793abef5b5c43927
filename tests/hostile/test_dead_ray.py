"""`kill -9` of each part of Ray: the process ends with one sentence, or goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from raycd.config.cli import EXIT_RAY_DIED, EXIT_TERMINATED
from serve.start.local import free_port
from tests.serve.crash.process import command, wait_until

ROOT = Path(__file__).parents[2]
ENDS_S = 15.0
JOB = """
import sys, time, ray
from raycd.config import cli
from raycd.runtime import cluster

@ray.remote
def sleep():
    time.sleep(600)

def main(options):
    with cluster.connected():
        print("connected", flush=True)
        ray.get(sleep.remote())

sys.exit(cli.run(main, prog="job", description="Waits inside of Ray."))
"""
SERVER = """
import socket, subprocess, sys, time
from pathlib import Path
from raycd.runtime import watch

watch.PORT_S, watch.EVERY_S, watch.SIGNAL_S = 0.5, 0.1, 0.1
watch.leftovers.append(Path(sys.argv[1]))
server = socket.create_server(("127.0.0.1", 0))
print(subprocess.Popen(["sleep", "600"]).pid)
with watch.port_answers(*server.getsockname()):
    time.sleep(1.5)
    print("answers", flush=True)
    server.close()
    time.sleep(600)
"""
# As their processes call themselves.
RAYLET, HEAD, AGENT, CONTROLLER, PROXY = (
    "raylet",
    "gcs_server",
    "DashboardAgent",
    "ServeController",
    "ProxyActor",
)


@pytest.fixture
def a_port() -> int:
    return free_port()


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """End the process and all below it, whatever happens inside."""
    try:
        yield
    finally:
        if process.poll() is None:
            for each in [*family(process), psutil.Process(process.pid)]:
                each.kill()
        process.communicate()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return list(psutil.Process(process.pid).children(recursive=True))


def is_part(process: psutil.Process, part: str) -> bool:
    """Return whether a process is that part of Ray; one that has ended meanwhile is none."""
    try:
        return part in process.name() or "".join(process.cmdline()[:1]).startswith(f"ray::{part}")
    except psutil.Error:
        return False


def kill(part: str, processes: list[psutil.Process]) -> None:
    [victim] = [each for each in processes if is_part(each, part)]
    victim.kill()


def lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def assert_ends(process: subprocess.Popen[str], part: str, log: Path) -> None:
    """Kill a part; check that the process ends with one sentence within ENDS_S, and leaves none."""
    processes = family(process)
    kill(part, processes)
    assert process.wait(ENDS_S) == EXIT_RAY_DIED, log.read_text()
    said = log.read_text()
    assert said.count("error: ") == 1, said
    assert said.splitlines()[-1].startswith("error: Ray has died ("), said
    assert said.endswith("): start this program again\n")
    assert "Traceback" not in said
    wait_until(lambda: not any(map(lives, processes)), "its processes to be gone")


@contextmanager
def job(log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run JOB until its task runs."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", JOB],
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    with ended(process):
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n", log.read_text()
        wait_until(
            lambda: any(is_part(each, "sleep") for each in family(process)),
            "the task to start",
        )
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("part", [RAYLET, HEAD, AGENT])
def test_a_job_that_waits_inside_of_ray_ends(tmp_path: Path, part: str) -> None:
    with job(tmp_path / "log") as process:
        assert_ends(process, part, tmp_path / "log")


@pytest.mark.slow
def test_a_signal_to_a_job_and_its_ray_at_once_is_no_death(tmp_path: Path) -> None:
    with job(tmp_path / "log") as process:
        for each in [psutil.Process(process.pid), *family(process)]:
            each.terminate()
        assert process.wait(ENDS_S) == EXIT_TERMINATED, (tmp_path / "log").read_text()
        assert "Ray has died" not in (tmp_path / "log").read_text()


def test_a_port_that_nobody_listens_on_any_more_is_a_death(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == EXIT_RAY_DIED, done.stderr
    child, said = done.stdout.split()
    assert said == "answers"
    assert "error: Ray has died (nothing listens on port " in done.stderr
    assert not folder.exists()
    assert not psutil.pid_exists(int(child)) or not lives(psutil.Process(int(child)))


@contextmanager
def service(bundle: Path, port: int, log: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = command(
        "--bundle", str(bundle), "--gallery", "none", "--port", str(port), *options, log=log
    )
    with ended(process):
        assert process.stdout is not None
        assert "raycd serves" in process.stdout.readline(), log.read_text()
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("part", [RAYLET, HEAD, AGENT])
def test_the_service_ends_with_its_ray(
    tiny_bundle: Any, a_port: int, tmp_path: Path, part: str
) -> None:
    with service(tiny_bundle.folder, a_port, tmp_path / "log") as process:
        assert_ends(process, part, tmp_path / "log")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "proxy"),
    [(CONTROLLER, "default"), (PROXY, "default"), ("haproxy", "haproxy"), (CONTROLLER, "haproxy")],
)
def test_what_ray_starts_again_ends_nothing(
    tiny_bundle: Any, a_port: int, tmp_path: Path, part: str, proxy: str
) -> None:
    def answers() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{a_port}/readyz", timeout=30).status_code == 200
        except httpx.TransportError:
            return False

    with service(tiny_bundle.folder, a_port, tmp_path / "log", "--proxy", proxy) as process:
        kill(part, family(process))
        time.sleep(2)  # so that what answers is what came after
        wait_until(answers, "the service to answer again")
        assert process.poll() is None
