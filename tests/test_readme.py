"""The README's tree is the disk's, and links lead somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
TREE = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1].split("```")[1]
INSIDE = {  # folders that belong to their room
    "jobs/benchmarks",
    "jobs/comparison",
    "raycd/config/presets",
    "raycd/model/configs",
    "raycd/model/fusion",
    "raycd/report/templates",
}


def folders() -> set[str]:
    """Return the folders of the four top rooms, as far as git knows files in them."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    parents = {parent for line in listed.stdout.splitlines() for parent in Path(line).parents}
    tops = ("raycd", "jobs", "serve", "tune")
    return {
        str(path)
        for path in parents
        if path.parts[:1] and path.parts[0] in tops and "migrations" not in path.parts
    }


def named() -> set[str]:
    """Return the folders that the tree names, by their indentation."""
    path: list[str] = []
    found = set()
    for indent, name in re.findall(r"^( *)([\w.]+)/ ", TREE, re.MULTILINE):
        path[len(indent) // 2 :] = [name]
        found.add("/".join(path))
    return found


def test_the_tree_names_the_folders_that_are_there() -> None:
    assert named() - {"tests", "docs", "k8s"} == folders() - {
        folder for folder in folders() if any(folder.startswith(inside) for inside in INSIDE)
    }


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_every_relative_link_leads_somewhere() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target, heading in re.findall(r"\]\(([^)\s:#]*)(?:#([^)\s]+))?\)", text):
            other = document.parent / target if target else document
            assert other.exists(), f"{document.name} links to {target}"
            if heading:
                assert heading in headings(other), f"{document.name} links to {target}#{heading}"


def headings(document: Path) -> set[str]:
    """Return the names by which links lead to the headings of a document, as GitHub makes them."""
    lines = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = re.findall(r"^#+ (.+)$", lines, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in found}
