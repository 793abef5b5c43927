"""A Ray of our own, started by the real code in another process: strangers cannot use it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.sockets import listening, open_to_others

ROOT = Path(__file__).parents[2]

HOST = """
import functools, json, os, sys, tempfile

from ray._private.parameter import RayParams

from raycd.runtime import cluster

# Ray's agent has HTTP on port 52365 or, where another Ray of this machine has that, not at all:
# here on a free one.
RayParams.__init__ = functools.partialmethod(RayParams.__init__, dashboard_agent_listen_port=0)

def where():
    names = ("RAY_AUTH_TOKEN_PATH", "TMPDIR")
    with tempfile.NamedTemporaryFile() as file:
        made = os.path.realpath(file.name)
    return {"niceness": os.nice(0), "file": made, **{name: os.environ.get(name) for name in names}}

with cluster.connected():
    import ray

    node = ray._private.worker._global_node
    work = ray.get(ray.remote(num_cpus=0.5)(where).remote())
    session = node.get_session_dir_path()
    said = {"gcs": node.gcs_address, "session": session, "work": work, "here": where()}
    print(json.dumps(said), flush=True)
    sys.stdin.read()
names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "TMPDIR")
print(json.dumps({name: os.environ.get(name) for name in names}))
"""

STRANGER = """
import sys

import ray

ray.init(address=sys.argv[1], log_to_driver=False)
print("ran", ray.get(ray.remote(num_cpus=0.1)(lambda: 6 * 7).remote(), timeout=60))
"""


def run(code: str, *arguments: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def bare(home: Path) -> dict[str, str]:
    """Return this environment without settings of Ray and OpenMP."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "OMP_", "GOMP_"))
    }
    return kept | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="raycd-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def ours(temporary: Path) -> Iterator[dict[str, Any]]:
    """Return what a Ray prints that starts with RAY_AUTH_MODE=disabled and a long TMPDIR."""
    long = temporary / ("job-" + "x" * 86)
    long.mkdir()
    home = temporary / "home"
    home.mkdir()
    inherited = bare(home) | {"RAY_AUTH_MODE": "disabled", "TMPDIR": str(long)}
    process = run(HOST, environment=inherited)
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.stderr.read())
    said = json.loads(line) | {"pid": process.pid, "home": home, "long": str(long)}
    yield said
    out, error = process.communicate("", timeout=60)
    assert process.returncode == 0, error
    assert error == ""  # not a word of Ray's
    assert json.loads(out) == {
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN_PATH": None,
        "TMPDIR": str(long),
    }
    assert list(Path(said["long"]).glob("raycd-*")) == []
    assert not Path(said["here"]["TMPDIR"]).parent.exists()
    assert list(home.iterdir()) == []


def test_its_token_is_a_private_file_outside_of_home(ours: dict[str, Any]) -> None:
    token = Path(ours["here"]["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    assert len(token.read_text()) == 64
    assert ours["home"] not in token.parents


def test_nobody_else_gets_to_its_sockets_logs_and_code(ours: dict[str, Any]) -> None:
    session = Path(ours["session"]).resolve()
    assert (session / "sockets" / "raylet").is_socket()
    private = Path(ours["here"]["RAY_AUTH_TOKEN_PATH"]).parent
    assert private in session.parents  # Ray makes every folder within for everybody to write


@pytest.mark.slow
def test_a_stranger_cannot_join_and_who_has_the_token_can(ours: dict[str, Any]) -> None:
    # Otherwise Ray itself takes 127.0.0.1 for the machine's other address, where nobody listens.
    stranger = bare(ours["home"].parent) | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with_token = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": ours["here"]["RAY_AUTH_TOKEN_PATH"],
    }
    ways = [
        with_token,
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
    ]
    joining = [run(STRANGER, ours["gcs"], environment=stranger | way) for way in ways]
    friend, *strangers = [(process, *process.communicate(timeout=150)) for process in joining]
    assert friend[1] == "ran 42\n", friend[2]
    for process, out, error in strangers:
        assert process.returncode != 0
        assert out == ""
        assert "token" in error


@pytest.fixture(scope="module")
def agent(ours: dict[str, Any]) -> int:
    """Return the port of its agent, which starts some time after the node."""
    until = time.monotonic() + 90
    while time.monotonic() < until:
        for file in Path(ours["session"]).glob("dashboard_agent_listen_port_*"):
            if (text := file.read_text().strip()).isdecimal() and 0 < int(text) < 65536:
                return int(text)
        time.sleep(0.2)
    pytest.fail("the agent has not written its port")


def submit(agent: int, entrypoint: str, **headers: str) -> int:
    request = urllib.request.Request(
        f"http://127.0.0.1:{agent}/api/job_agent/jobs/",
        data=json.dumps({"entrypoint": entrypoint}).encode(),
        headers={"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_stranger_cannot_submit_a_job_over_http(
    ours: dict[str, Any], agent: int, temporary: Path
) -> None:
    for headers in ({}, {"Host": "evil.example"}, {"Authorization": "Bearer " + "0" * 64}):
        assert submit(agent, f"touch {temporary}/came", **headers) in (401, 403)
    token = Path(ours["here"]["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert submit(agent, "true", Authorization=f"Bearer {token}") == 200
    assert not (temporary / "came").exists()


def test_it_listens_on_loopback_alone(ours: dict[str, Any]) -> None:
    there = set(listening(ours["pid"]).values())
    assert {"raylet", "gcs_server", "ray::DashboardAgent", "ray::RuntimeEnvAgent"} <= there
    assert open_to_others(ours["pid"]) == {}


def test_workers_wait_for_no_other_program(ours: dict[str, Any]) -> None:
    assert ours["work"]["niceness"] == 0


def test_a_temporary_folder_with_a_long_path_is_used_by_a_short_one(ours: dict[str, Any]) -> None:
    assert len(ours["long"]) > 90
    for side in ("here", "work"):
        assert len(ours[side]["TMPDIR"]) < 40
        assert ours[side]["file"].startswith(ours["long"])
