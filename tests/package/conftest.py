"""A wheel built from what git tracks, and an environment outside of the checkout that has it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and the dependencies of the tests' own environment."""

    folder: Path

    def run(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, outside of the checkout and knowing nothing of it."""
        return subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=timeout,
        )


def tracked() -> list[str]:
    """Return the files of the checkout as git knows them. Skips where there is no git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the checkout, so that what a build leaves is not in it."""
    copy = tmp_path_factory.mktemp("source")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    return copy


def build(source: Path, out: Path, *what: str) -> Path:
    """Build by `python -m build`; return the wheel."""
    pytest.importorskip("build", reason="build is not installed: pip install 'raycd[dev]'")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *what]
    made = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    [wheel] = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(source, tmp_path_factory.mktemp("dist"), "--wheel")


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the wheel; what it depends on is that of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith(site.name)))
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "-q"]
    install = [*pip, "install", "--no-deps", "--no-index", "--no-compile", str(wheel)]
    made = subprocess.run(install, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return Installed(folder)
