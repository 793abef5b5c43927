"""jobs/embed.py on images alone, in a user's hands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs import embed
from raycd.config import cli
from raycd.features import shards
from raycd.features.stored import Stored
from raycd.run import open_uri
from tests.processes import start

SMALL = ["--embed.batch_size", "16", "--compute.embed_workers", "2", "--compute.threads", "1"]


def run(*argv: str) -> int:
    given = [*argv, *SMALL]
    return cli.run(embed.main, given, prog="jobs/embed.py", description="", flags=embed.flags)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        patch = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        patch.resize((48, 40)).save(folder / f"{number:04d}.png")
    return folder


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Return a table beside its pictures, of which one is broken and one not there."""
    folder = pictures(tmp_path / "pictures", 12)
    (folder / "0003.png").write_bytes(b"no picture")
    (folder / "0004.png").unlink()
    lines = ["image_id,path,colour", *(f"{n},pictures/{n:04d}.png,red" for n in range(12))]
    (tmp_path / "gallery.csv").write_text("\n".join(lines))
    return tmp_path / "gallery.csv"


def test_a_gallery_table_is_embedded_and_what_is_broken_is_listed(
    ray_cluster: None,
    tiny_bundle: Any,
    gallery: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # workers have another working folder
    command = ["--images", "gallery.csv", "--bundle", str(tiny_bundle.folder), "--out", "out"]
    for _ in range(2):
        assert run(*command) == 0
        said = capsys.readouterr().out
        assert "images:   10 embedded, 2 missing or broken" in said
        assert "missing:  1 missing, 1 not_an_image; listed in" in said
    listed = json.loads((tmp_path / "out" / "missing_images.json").read_text())
    assert listed["images"] == {"3": "not_an_image", "4": "missing"}
    found = Stored.open(tmp_path / "out").features()
    assert found.keys.to_pylist() == [str(n) for n in range(12) if n not in (3, 4)]


@pytest.mark.parametrize("argv", [["--images", "x"], ["--out", "x"], ["--bundle", "x"]])
def test_half_a_command_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    assert "takes --images and --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gallery.csv", "image_id,colour\n1,red\n", "lacks a column"),
        ("gallery.csv", "image_id,path\n1,a.png\n,b.png\n", "row 2 has no usable image_id"),
        ("gallery.csv", "image_id,path\n1,a.png\n1,b.png\n", "gives an image another path"),
        ("gallery.csv", "image_id,path\n", "there are no pictures"),
        ("gallery.csv", "image_id,path\n1\n", "cannot be read as csv"),
        ("gallery.jsonl", '{"image_id": 1, "path": "a"}\n{"image_id"', "line 2 is not valid JSON"),
        ("gallery.jsonl", '{"image_id": 1.5, "path": "a"}\n', "row 1 has no usable image_id"),
        ("gallery.parquet", "PAR1", "cannot be read as parquet"),
        ("shard.tar", "no archive", "cannot be read as .tar"),
        ("folder/notes.txt", "no picture", "there are no pictures"),
    ],
)
def test_a_mistake_in_the_source_is_one_message(
    ray_cluster: None,
    tiny_bundle: Any,
    tmp_path: Path,
    name: str,
    content: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / name).write_text(content)
    source = tmp_path / ("folder" if name.startswith("folder") else name)
    bundle = ["--bundle", str(tiny_bundle.folder)]
    assert run("--images", str(source), *bundle, "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert message in said.partition("error: ")[2]
    assert "Traceback" not in said
    assert not shards.parts(str(tmp_path / "out"))


def test_a_source_that_is_not_there_is_told(
    ray_cluster: None, tiny_bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("absent", "absent/gallery.csv", "gallery.csv"):
        given = ["--images", str(tmp_path / name), "--out", str(tmp_path / "out")]
        assert run(*given, "--bundle", str(tiny_bundle.folder)) == 2
        message = capsys.readouterr().err.partition("error: ")[2]
        assert "absent" in message or "gallery.csv cannot be read" in message


@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_job_that_is_killed_goes_on_and_encodes_no_shard_twice(
    where: str, tiny_bundle: Any, s3: dict[str, str], tmp_path: Path
) -> None:
    source, out = str(pictures(tmp_path / "pictures", 1500)), str(tmp_path / "out")
    whole = str(tmp_path / "whole")
    job = started(source, whole, tiny_bundle)
    if where == "bucket":
        out = f"s3://raycd/{tmp_path.name}/out"
        open_uri(out)[0].put(f"{source}/", f"raycd/{tmp_path.name}/pictures/", recursive=True)
        source = f"s3://raycd/{tmp_path.name}/pictures"
    assert job.communicate(timeout=300)[0]
    killed = started(source, out, tiny_bundle)
    until = time.monotonic() + 180
    while len(shards.parts(out)) < 2:
        if killed.poll() is not None or time.monotonic() > until:
            with suppress(ProcessLookupError):
                os.killpg(killed.pid, signal.SIGKILL)
            pytest.fail(killed.communicate()[1])
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    time.sleep(5)  # Ray's workers notice that their driver is gone
    there, plan = shards.parts(out), shards.read_plan(out)
    assert plan is not None
    assert 2 <= len(there) < plan.shards
    before = written(there.values())
    job = started(source, out, tiny_bundle)
    said, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert "images:   1,500 embedded, 0 missing or broken" in said
    assert written(there.values()) == before
    assert ("is held" in err) == (where == "bucket")
    rest = 1500 - len(there) * (plan.shard_rows or 0)
    assert f"embed images: {rest}/{rest} images" in err
    found, expected = (pa.concat_tables(Stored.open(uri).blocks()) for uri in (out, whole))
    assert found.select(["key", "status"]).equals(expected.select(["key", "status"]))
    assert found.equals(expected)


def written(uris: Iterable[str]) -> list[datetime]:
    """Return when each file was written last."""
    return [store.modified(path) for store, path in map(open_uri, uris)]


def started(source: str, out: str, tiny_bundle: Any) -> subprocess.Popen[str]:
    bundle = str(tiny_bundle.folder)
    return start("jobs/embed.py", "--images", source, "--bundle", bundle, "--out", out, *SMALL)
