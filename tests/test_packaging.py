"""requirements.lock fits pyproject.toml: complete, hashed, in the right sections."""

import re
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


def version_on(python: str, requirement: Requirement, section: str) -> Version:
    """Return the version that a Linux machine with this Python gets."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }
    chosen = [
        pin
        for pin, _ in pins(section).get(canonicalize_name(requirement.name), [])
        if pin.marker is None or pin.marker.evaluate(environment)
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
