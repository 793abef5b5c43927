import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from raycd.config import ComputeConfig
from raycd.model import threads
from raycd.runtime import cluster

# CPU seconds of threads that wait between short operations
WAITING = """
import time
import torch
from raycd.model import threads

def waited(rounds=40):
    began = time.process_time()
    for _ in range(rounds):
        torch.ones(1 << 16).add_(1)
        time.sleep(0.02)
    return time.process_time() - began

torch.set_num_threads(2)
teams = threads.SleepingTeams()
waited(1)
alone = waited()
teams.keep(threads.wanted(2, 2, threads.Usage().cpus))
time.sleep(0.1)
beside_others = waited()
teams.keep(0)
time.sleep(0.1)
print(alone, beside_others, waited())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is that of torch on Linux")
def test_threads_wait_shortly_while_teams_sleep_and_as_before_when_they_have_gone() -> None:
    bare = {n: v for n, v in os.environ.items() if not n.startswith(("OMP_", "GOMP_"))}
    found = subprocess.run(
        [sys.executable, "-c", WAITING], env=bare, check=True, capture_output=True, text=True
    )
    alone, beside_others, again = map(float, found.stdout.split())
    assert beside_others < alone / 2
    assert beside_others < again / 2


@pytest.mark.parametrize(
    ("others", "count", "cpus", "teams"),
    [(0, 2, 2, 0), (0.2, 2, 2, 0), (1, 2, 2, 2), (1, 2, 4, 0), (3, 2, 4, 3), (16, 4, 16, 5)],
)
def test_teams_are_wanted_where_others_have_the_cpus_of_our_threads(
    others: float, count: int, cpus: int, teams: int
) -> None:
    assert threads.wanted(others, count, cpus) == teams
    if teams:
        assert (teams + 1) * count > cpus


def test_a_busy_program_is_another() -> None:
    usage = threads.Usage()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(1)
        used = usage.of_others()
        other.kill()
    assert used > threads.LACKING


def test_our_own_work_is_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = threads.Usage()
    usage.cpus, usage._last = 4, (10.0, 5.0, 2.0)  # all, idle, own
    monkeypatch.setattr(usage, "_seconds", lambda: (14.0, 7.0, 3.0))
    assert usage.of_others() == 1.0


@pytest.mark.parametrize(
    ("count", "environment", "watched"),
    [
        (2, {}, True),
        (1, {}, False),
        (2, {"OMP_WAIT_POLICY": "ACTIVE"}, False),
        (2, {"GOMP_SPINCOUNT": "1000"}, False),
    ],
)
def test_waits_are_watched_where_threads_wait_and_nobody_has_decided(
    monkeypatch: pytest.MonkeyPatch, count: int, environment: dict[str, str], watched: bool
) -> None:
    for name in threads.DECIDED:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "_watch", None)
    monkeypatch.setattr(threads, "_keep_watch", lambda: None)  # it would outlive this test
    before = torch.get_num_threads()
    try:
        threads.use(count)
        assert torch.get_num_threads() == count
        assert (threads._watch is not None) == watched
    finally:
        torch.set_num_threads(before)


def test_a_container_gives_its_share_of_the_cpus_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.setattr(threads, "CGROUP", str(tmp_path / "cpu.max"))
    assert cluster.threads(ComputeConfig(), workers=2) == 8
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    assert [cluster.threads(ComputeConfig(), workers) for workers in (1, 2, 8)] == [4, 2, 1]
    assert cluster.threads(ComputeConfig(threads=3), workers=1) == 3
