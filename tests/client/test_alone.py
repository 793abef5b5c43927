"""The client where only the base dependencies are installed: no torch, no ray, no settings."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.client.scripted import Reply, Service, found, info, takes_all
from tests.packages import closure

ROOT = Path(__file__).parents[2]
BASE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Link the base dependencies of this installation, and raycd, into a folder of their own."""
    folder = tmp_path_factory.mktemp("site")
    for name in closure(BASE):
        files = distribution(name).files or []
        installed = Path(str(distribution(name).locate_file("")))
        for top in {file.parts[0] for file in files if not file.parts[0].startswith("..")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(installed / top)
    for name in ("raycd", "jobs"):
        (folder / name).symlink_to(ROOT / name)
    return folder


START = """
import sys

folder, sys.argv = sys.argv[1], ["raycd", *sys.argv[2:]]
sys.path[:] = [folder, *(path for path in sys.path if not path.endswith("site-packages"))]
"""


def python(site: Path, code: str, *argv: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run code in this Python with nothing but its own library and the folder `site`."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", START + code, str(site), *argv],
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=site.parent,
    )


COMMAND = "from jobs.command import main; sys.exit(main())"


def test_the_base_is_httpx_and_pydantic() -> None:
    assert {Requirement(line).name for line in BASE} == {"httpx", "pydantic"}


def test_the_client_searches(site: Path, service: Service) -> None:
    service.answers(Reply(body=found("a", "b")))
    code = f"from raycd.client import Client; print(Client({service.url!r}).search(text='x').total)"
    done = python(site, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_the_command_searches_and_imports_lines(site: Path, service: Service) -> None:
    service.answers(Reply(body=found("a")), Reply(body=info()), takes_all)
    where = ("client", "--url", service.url)
    done = python(site, COMMAND, *where, "search", "--text", "is blue", "--json")
    assert json.loads(done.stdout)["total"] == 3, done.stderr
    line = json.dumps({"image_id": "a", "feature": [0.5, 1.0], "encoder": "0123456789ab"})
    done = python(site, COMMAND, *where, "import", "-", given=line)
    assert done.stdout == "1 of 1 images are in the gallery, version 1\n", done.stderr


@pytest.mark.parametrize("command", ["train", "serve", "sweep", "gallery"])
def test_a_command_of_the_whole_names_the_extra_that_brings_it(site: Path, command: str) -> None:
    done = python(site, COMMAND, command, "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert "pip install 'raycd[cpu]', or 'raycd[gpu]'" in done.stderr


@pytest.mark.parametrize("room", ["raycd.config", "raycd.search", "raycd.bundle.manifest"])
def test_an_import_of_the_whole_names_the_extra_that_brings_it(site: Path, room: str) -> None:
    done = python(site, f"import {room}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: raycd.")
    assert "pip install 'raycd[cpu]'" in done.stderr


def test_a_table_of_images_needs_the_whole_and_says_so(site: Path, tmp_path: Path) -> None:
    table = tmp_path / "gallery.csv"
    table.write_text("image_id,path\na,a.jpg\n")
    done = python(site, COMMAND, "client", "import", str(table))
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'raycd[cpu]'" in done.stderr
