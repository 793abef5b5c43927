"""What `jobs/benchmark.py` refuses before it measures anything, and how it ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs import benchmark
from raycd.program import EXIT_TERMINATED


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "nothing to measure is named"),
        ("scale --only ivf", "scale does not read --only"),
        ("mine --photos photos", "expected: it with embed or decoding"),
        ("scale --images -5", "--images: impossible value"),
        ("line --only service", "name demo, too"),
        ("gpu --only speed", "--only names no part"),
        ("mine --images 64", "expected: 65 or more"),
        ("mine --candidates 0", "--candidates: impossible value"),
        ("serve --seconds 0", "--seconds: impossible value"),
        ("feedback --sessions -10", "--sessions: impossible value"),
    ],
)
def test_an_option_that_says_nothing_or_the_impossible_is_refused(
    given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.program(given.split()) == 2
    assert said in capsys.readouterr().err


def test_what_runs_in_another_process_ends_with_the_benchmark(tmp_path: Path) -> None:
    began = tmp_path / "began"
    code = f"""
import sys
from jobs.benchmarks.measuring import elsewhere
from raycd.program import guard
from tests.jobs.test_benchmark import begin_and_sleep

if __name__ == "__main__":
    sys.exit(guard(lambda: elsewhere(begin_and_sleep, {str(began)!r}), []))
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, str(program)], env=environment) as running:
        while not (began.exists() and began.read_text()):
            assert running.poll() is None
            time.sleep(0.1)
        child = psutil.Process(int(began.read_text()))
        running.terminate()
        assert running.wait(60) == EXIT_TERMINATED
        assert not child.is_running()


def begin_and_sleep(began: str) -> None:
    Path(began).write_text(str(os.getpid()))
    time.sleep(600)
