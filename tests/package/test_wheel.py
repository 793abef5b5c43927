"""The wheel: it is whole, says the truth about itself, and works outside of the checkout."""

from __future__ import annotations

import resource
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

from jobs.command import PROGRAMS
from tests.package.conftest import Installed, build, tracked

ROOMS = ("raycd", "jobs", "serve", "tune")
EVERY_HELP = """
import contextlib, io, sys
import jobs.command, raycd, serve, tune

for name in jobs.command.PROGRAMS:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        jobs.command.main([name, "--help"])
    print(said.getvalue().split(maxsplit=3)[:3])
assert "/site-packages/" in jobs.command.__file__, jobs.command.__file__
assert not {"torch", "ray", "mlflow"} & sys.modules.keys()
"""


def metadata(wheel: Path) -> tuple[Message, str]:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(name).decode()
    return Parser().parsestr(text), text


def packed(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_has_every_file_of_the_rooms_and_nothing_else(wheel: Path) -> None:
    assert packed(wheel) == {name for name in tracked() if name.split("/")[0] in ROOMS}


@pytest.mark.slow
def test_the_wheel_of_the_source_distribution_is_the_same(
    source: Path, wheel: Path, tmp_path: Path
) -> None:
    assert packed(build(source, tmp_path)) == packed(wheel)


def test_its_metadata_is_valid_and_shows_the_readme(wheel: Path) -> None:
    headers, text = metadata(wheel)
    known = Metadata.from_email(text, validate=True)
    assert known.description_content_type == "text/markdown"
    assert (known.description or "").startswith("# raycd")
    assert headers["License-Expression"] == "Apache-2.0"


def test_without_an_extra_it_is_the_client_alone(wheel: Path) -> None:
    headers, _ = metadata(wheel)
    needs = [Requirement(line) for line in headers.get_all("Requires-Dist") or []]
    base = {need.name for need in needs if need.marker is None}
    assert base == {"httpx", "pydantic"}
    extras = set(headers.get_all("Provides-Extra") or [])
    assert {"cpu", "gpu", "hf", "joint", "s3", "milvus", "postgres", "dev"} <= extras
    for extra in ("cpu", "gpu"):
        chosen = {n.name for n in needs if n.marker and n.marker.evaluate({"extra": extra})}
        assert chosen == {"raycd", f"faiss-{extra}"}


def test_every_command_has_its_help_outside_of_the_checkout(installed: Installed) -> None:
    done = installed.run("python", "-c", EVERY_HELP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(["usage:", "raycd", name]) for name in PROGRAMS]


def test_the_help_comes_within_half_a_second(installed: Installed) -> None:
    seconds = []
    for _ in range(5):  # of its CPU: the machine may be busy with others
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = installed.run("raycd", "--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert all(f"\n  {name} " in done.stdout for name in PROGRAMS)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", ["", "trian"])
def test_a_command_that_is_not_there_is_a_mistake(installed: Installed, command: str) -> None:
    done = installed.run("raycd", *filter(None, [command]))
    assert done.returncode == 2
    assert "COMMAND" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_commands_exit_code_is_the_programs(installed: Installed, tmp_path: Path) -> None:
    keys = str(tmp_path / "keys.json")
    add = ("raycd", "keys", "add", "--file", keys, "--name", "ann", "--scope", "read")
    assert installed.run(*add).returncode == 0
    again = installed.run(*add)
    assert again.returncode == 2
    assert "there is a key of the name ann" in again.stderr


def test_messages_name_the_command_and_not_scripts_that_are_not_there(
    installed: Installed, tmp_path: Path
) -> None:
    absent = str(tmp_path / "bundle")
    done = installed.run("raycd", "serve", "--bundle", absent)
    assert done.returncode == 2
    assert "run raycd train --preset demo first" in done.stderr
    done = installed.run(
        "raycd", "client", "--url", "http://127.0.0.1:9", "--retries", "0", "ready"
    )
    assert "start the service (raycd serve --bundle ...)" in done.stderr
