"""The README's annotated tree matches the disk."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TREE = README.split("## The tree")[1].split("```")[1]
NAMED = set(re.findall(r"[\w.-]+\.(?:py|yaml|md|toml|lock)\b", TREE)) | set(
    re.findall(r"([\w.]+)/", TREE)
)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [Path(line) for line in listed.stdout.splitlines()]


def test_every_module_stands_in_the_tree() -> None:
    heads = {
        "clip_cd.py",
        "combiner.py",
        "sum.py",
        "registry.py",
    }  # the tree names their folder's heads
    inside = (
        "raycd/gallery_db/migrations/",
        "raycd/mine/",
        "raycd/report/",
        "raycd/index/",
        "raycd/client/",
        "jobs/benchmarks/",
    )  # folders that the tree names as one
    modules = [
        path
        for path in tracked()
        if path.suffix == ".py"
        and path.parts[0] in ("raycd", "jobs", "serve", "tune")
        and path.name not in {"__init__.py", *heads}
        and not str(path).startswith(inside)
    ]
    assert [str(path) for path in modules if path.name not in NAMED] == []


def test_everything_named_in_the_tree_is_there() -> None:
    parts = {part for path in tracked() for part in path.parts}
    assert sorted(NAMED - parts) == []


def test_every_relative_link_leads_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
