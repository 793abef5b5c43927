"""Bundles that were fetched: whole, once, and no more of them than are used or kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from s3fs import S3FileSystem

from raycd import bundle
from raycd.bundle import cache
from raycd.errors import WeightsError
from serve.args import ServeArgs
from serve.engine import swap

ROOT = Path(__file__).parents[2]


@pytest.fixture
def uri(s3: dict[str, str], tiny_bundle: Any, tmp_path: Path) -> str:
    path = f"raycd/{tmp_path.name}/bundle"
    S3FileSystem().put(f"{tiny_bundle.folder}/", f"{path}/", recursive=True)
    return f"s3://{path}"


def test_a_bundle_on_a_store_is_fetched_once_and_anew_where_it_was_replaced(
    uri: str, tiny_bundle: Any, tmp_path: Path
) -> None:
    folder = cache.fetch(uri, str(tmp_path / "cache"))
    assert bundle.verify(folder) == bundle.verify(tiny_bundle.folder)
    S3FileSystem().rm_file(f"{uri.removeprefix('s3://')}/gallery.parquet")
    assert cache.fetch(f"{uri}/", str(tmp_path / "cache")) == folder, "it was fetched again"
    about = json.loads((folder / "manifest.json").read_text())
    S3FileSystem().pipe_file(
        f"{uri.removeprefix('s3://')}/manifest.json", json.dumps(about).encode()
    )
    with pytest.raises(WeightsError):  # another manifest, and a file less
        cache.fetch(uri, str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 1


def test_where_a_store_has_no_bundle_is_told(s3: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no bundle at s3://raycd/nothing"):
        cache.fetch("s3://raycd/nothing", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


USE = """
import sys
from pathlib import Path
from raycd.bundle import cache
cache.keep(sys.argv[2], lambda folder: (folder / "f").write_text("x"), sys.argv[1])
print("used", flush=True)
sys.stdin.read()
"""


def test_the_bundles_used_last_stay_and_those_that_a_process_uses(tmp_path: Path) -> None:
    used = list(range(cache.KEPT + 2))
    for number in used:
        folder = tmp_path / "stores" / f"{number}"
        folder.mkdir(parents=True)
        os.utime(folder, (number, number))
    with subprocess.Popen(
        [sys.executable, "-c", USE, str(tmp_path), "stores/0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "used\n"
        os.utime(tmp_path / "stores" / "0", (0, 0))
        cache.keep("stores/new", lambda folder: None, str(tmp_path))
        left = sorted(path.name for path in (tmp_path / "stores").iterdir())
        assert left == ["0", *map(str, used[-cache.KEPT + 1 :]), "new"]
        process.kill()
    cache.keep("stores/new", lambda folder: None, str(tmp_path))
    left = sorted(path.name for path in (tmp_path / "stores").iterdir())
    assert left == [*map(str, used[-cache.KEPT + 1 :]), "new"]


def test_a_removal_that_breaks_off_leaves_no_half_of_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(cache.KEPT + 1):
        folder = tmp_path / "stores" / f"{number}"
        folder.mkdir(parents=True)
        for name in ("old", "gone"):
            (folder / name).write_text("x")
        os.utime(folder, (number, number))

    def breaks_off(folder: Path, **_: object) -> None:
        """Remove some and stop, as where the process is killed."""
        (folder / "gone").unlink(missing_ok=True)

    with monkeypatch.context() as patched:
        patched.setattr("raycd.durable.shutil.rmtree", breaks_off)
        cache.keep("stores/new", lambda folder: None, str(tmp_path))
    again = cache.keep("stores/0", lambda own: (own / "new").write_text("x"), str(tmp_path))
    assert [path.name for path in again.iterdir()] == ["new"]


def test_what_a_process_had_fetched_when_it_was_killed_goes_with_the_next_fetch(
    tmp_path: Path,
) -> None:
    left = tmp_path / "stores" / ".half.4711.writing"
    left.mkdir(parents=True)
    (left / "encoder.safetensors").write_text("half")
    cache.keep("stores/new", lambda folder: None, str(tmp_path))
    assert [path.name for path in (tmp_path / "stores").iterdir()] == ["new"]


def test_the_service_takes_a_bundle_on_a_store_with_a_gallery_that_is_named(
    uri: str, tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValidationError, match="or a store has no folder for a gallery"):
        ServeArgs(bundle=uri)
    args = ServeArgs(bundle=uri, gallery="none")
    folder = swap.folder(args.bundle)
    assert folder.is_relative_to(tmp_path / ".cache" / "raycd" / "bundles")
    assert swap.digest(folder) == bundle.verify(tiny_bundle.folder).digest
