"""requirements.lock fits pyproject.toml: complete, hashed, in the right sections."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from raycd import extras
from tests.packages import closure

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
IMAGE = ("system", "hf", "joint", "lora", "milvus", "postgres", "s3")  # extras of [all]
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]


def pins(section: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Return name -> pins of a section of the lock; several where markers differ."""
    body = LOCK.split(f"# [{section}]\n")[1].split("\n# [")[0]
    found: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for line in re.sub(r"\\\n\s*", "", body).splitlines():
        requirement, *hashes = line.split("--hash=")
        pin = Requirement(requirement)
        found.setdefault(canonicalize_name(pin.name), []).append((pin, [h.strip() for h in hashes]))
    return found


def linux(python: str) -> dict[str, str]:
    """Return what markers ask of a Linux machine with this Python."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }


def version_on(python: str, requirement: Requirement, section: str) -> Version:
    """Return the version that a Linux machine with this Python gets."""
    chosen = [
        pin
        for pin, _ in pins(section).get(canonicalize_name(requirement.name), [])
        if pin.marker is None or pin.marker.evaluate(linux(python))
    ]
    assert len(chosen) == 1, (
        f"{requirement.name}: {len(chosen)} pins in [{section}] for Python {python}, expected 1"
    )
    (specifier,) = chosen[0].specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def test_lock_has_the_four_sections_once_and_in_order() -> None:
    assert re.findall(r"^# \[(.+)\]$", LOCK, flags=re.MULTILINE) == ["all", "dev", "cpu", "gpu"]


def test_lock_names_no_address() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*--(?!hash=sha256:)", LOCK, flags=re.MULTILINE)


@pytest.mark.parametrize("section", ["all", "dev", "cpu", "gpu"])
def test_every_pin_has_a_hash(section: str) -> None:
    for name, entries in pins(section).items():
        for _, hashes in entries:
            assert hashes, f"{name} has no hash"
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), name


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", ["base", *IMAGE, "cpu", "gpu", "dev"])
def test_every_dependency_is_pinned_within_its_range(extra: str, python: str) -> None:
    names = PROJECT["dependencies"] if extra == "base" else EXTRAS[extra]
    for requirement in map(Requirement, names):
        if requirement.name == "raycd":
            continue  # an extra of its own
        elsewhere = extra if extra in ("cpu", "gpu", "dev") else "all"
        section = "all" if canonicalize_name(requirement.name) in pins("all") else elsewhere
        version = version_on(python, requirement, section)
        assert version in requirement.specifier, (
            f"{requirement.name} {version} is outside {requirement.specifier}"
        )


@pytest.mark.parametrize("python", PYTHONS)
def test_torch_and_torchvision_are_the_pair_that_was_tried(python: str) -> None:
    pair = [str(version_on(python, Requirement(name), "all")) for name in ("torch", "torchvision")]
    assert pair == ["2.15.0", "0.29.2"]


def test_the_two_builds_of_faiss_never_meet() -> None:
    assert "faiss-cpu" in pins("cpu")
    assert "faiss-gpu" in pins("gpu")
    assert not {"faiss-cpu", "faiss-gpu"} & pins("all").keys()


@pytest.mark.parametrize("extra", ["dev", "cpu", "gpu"])
def test_an_extra_pins_nothing_that_all_pins_already(extra: str) -> None:
    assert not pins("all").keys() & pins(extra).keys()


def test_an_image_needs_nothing_that_only_the_tests_have() -> None:
    asked = [line for name in IMAGE for line in EXTRAS[name] if not line.startswith("raycd")]
    needed = closure(PROJECT["dependencies"] + asked)
    installed_otherwise = {"faiss-cpu"}  # by the extra
    assert needed - pins("all").keys() <= installed_otherwise
    assert "moto" not in pins("all")


def test_what_is_missing_is_told_with_the_extra_that_brings_it() -> None:
    told = {package: extra for package, extra in extras.OF.items() if extra}
    brought = {
        Requirement(line).name.replace("-", "_"): extra
        for extra in set(told.values())
        for line in EXTRAS[extra]
        if not line.startswith("raycd")
    }
    assert told == brought
    assert extras.install("sentence_transformers") == "pip install 'raycd[joint]'"
    assert extras.install("milvus_lite") == "pip install milvus-lite"
    assert {"cpu", "gpu"} <= EXTRAS.keys()  # of everything else


# Instead of downloading, it keeps what it was asked for and makes one file.
PIP = """#!/bin/sh
[ "$1 $2" = "-m pip" ] || exec "$REAL" "$@"
echo "$@" >"$ASKED"
while [ "$1" != --dest ]; do shift; done
head -c 150000 /dev/zero >"$2/toy.whl"
"""


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_wheels_packs_what_the_other_machine_lacks(extra: str, python: str, tmp_path: Path) -> None:
    fake, asked, out = tmp_path / "python", tmp_path / "asked", tmp_path / "out"
    fake.write_text(PIP)
    fake.chmod(0o755)
    out.mkdir()
    (out / "raycd-wheels.tar.77").write_text("of an earlier run")
    options = {"OUT": out, "PYTHON_VERSION": python, "EXTRA": extra, "PART": "100K"}
    options |= {"WITHOUT": "torch Nvidia_*", "GLIBC": "31"}
    settings = {"PYTHON": fake, "REAL": sys.executable, "ASKED": asked} | options
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    subprocess.run([ROOT / ".ci/wheels"], env=environment, cwd=tmp_path, check=True)

    parts = sorted(out.iterdir())
    assert [part.name for part in parts] == [f"raycd-wheels.tar.{n:02}" for n in range(len(parts))]
    assert {part.stat().st_size for part in parts[:-1]} == {102_400}
    joined = b"".join(part.read_bytes() for part in parts)
    subprocess.run(["tar", "x"], input=joined, cwd=tmp_path, check=True)
    assert (tmp_path / "wheels/toy.whl").stat().st_size == 150_000
    assert f"--python-version {python} " in asked.read_text()
    assert "manylinux_2_31_x86_64" in asked.read_text()

    expected = {
        f"{pin.name}{pin.specifier}": hashes
        for section in ("all", extra)
        for entries in pins(section).values()
        for pin, hashes in entries
        if pin.name != "torch" and not pin.name.startswith("nvidia-")
        if pin.marker is None or pin.marker.evaluate(linux(python))
    }
    packed = (tmp_path / "wheels/requirements.txt").read_text().replace("\\\n", " ")
    lines = (line.split() for line in packed.splitlines())
    found = {name: [value.removeprefix("--hash=") for value in values] for name, *values in lines}
    assert found == expected
    assert {f"faiss-{extra}", "torchvision"} <= {name.split("==")[0] for name in found}


def test_wheels_knows_no_other_extra(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path), "EXTRA": "dev"}
    told = subprocess.run([ROOT / ".ci/wheels"], env=environment, capture_output=True, text=True)
    assert told.returncode == 1
    assert told.stderr == "EXTRA is cpu or gpu, not 'dev'\n"
    assert list(tmp_path.iterdir()) == []
