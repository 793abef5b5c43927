"""Odd pictures through all readers without a service: each has its outcome, and no other error."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from raycd.config import DataConfig
from raycd.data import images
from raycd.data.images import BrokenImage
from raycd.data.pixels import PixelCache
from raycd.data.preprocess import Preprocess
from raycd.model.embed import EmbedImages
from raycd.report.pictures import data_uri
from tests.hostile.corpus import corpus

CORPUS = corpus()
LIMITS = DataConfig()
SMALL = [odd.data for odd in CORPUS if len(odd.data) < 20_000]


def read(data: bytes) -> Image.Image:
    return images.decode(data, max_pixels=LIMITS.max_pixels, min_side=LIMITS.min_side)


def test_the_corpus_is_large_and_its_files_are_small() -> None:
    assert len(CORPUS) > 150
    assert sum(len(odd.data) for odd in CORPUS) < 1_000_000
    assert {odd.outcome for odd in CORPUS} == {"ok", *images.REASONS} - {"missing"}
    assert [odd.data for odd in corpus()] == [odd.data for odd in CORPUS]


def test_every_file_is_read_or_refused_as_it_should_be() -> None:
    failed = {}
    for odd in CORPUS:
        try:
            outcome, wrong = "ok", odd.wrong(read(odd.data))
        except BrokenImage as error:
            outcome, wrong = error.reason, ""
        if wrong or outcome != odd.outcome:
            failed[odd.name] = wrong or f"{outcome}, expected {odd.outcome}"
    assert not failed


def test_training_reads_what_can_be_read_and_counts_the_rest(
    tmp_path: Path, new_encoder: Callable[[], Any]
) -> None:
    paths = {odd.name: str(tmp_path / odd.name) for odd in CORPUS}
    for odd in CORPUS:
        Path(paths[odd.name]).write_bytes(odd.data)
    encoder = new_encoder()
    out = EmbedImages(encoder, LIMITS)({"key": list(paths), "path": list(paths.values())})
    found = dict(zip(out["key"], out["status"], strict=True))
    assert {name: status for name, status in found.items() if status != "ok"} == {
        odd.name: odd.outcome for odd in CORPUS if odd.outcome != "ok"
    }
    readable = np.array([odd.outcome == "ok" for odd in CORPUS])
    assert np.isfinite(out["feature"]).all()
    assert (np.linalg.norm(out["feature"], axis=1) > 0).tolist() == readable.tolist()
    good = [odd.name for odd in CORPUS if odd.outcome == "ok"]
    assert PixelCache(paths, encoder.preprocess, LIMITS, limit_mib=1)(good).shape[0] == len(good)


def test_a_report_shows_what_can_be_read() -> None:
    failed = {}
    for odd in CORPUS:
        try:
            uri = data_uri(images.decode(odd.data, max_pixels=100_000_000, min_side=1))
        except BrokenImage:
            uri = data_uri(None)
        if odd.outcome in ("ok", "too_small"):
            shown = Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))
            shown.load()
            fits = max(shown.size) <= 224
        else:
            fits = uri == ""
        if not fits:
            failed[odd.name] = uri[:60]
    assert not failed


def test_nothing_is_said_of_damage_but_by_its_outcome() -> None:
    """Pillow warns of every damaged tag, and a file may have a thousand of them."""
    code = (
        "from raycd.data import images\n"
        "from tests.hostile.corpus import corpus\n"
        "for odd in corpus():\n"
        "    try:\n"
        "        images.decode(odd.data, max_pixels=50_000_000, min_side=8)\n"
        "    except images.BrokenImage:\n"
        "        pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-W", "always::RuntimeWarning", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    assert "PIL" not in done.stderr


mutations = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "cut", "repeat", "remove", "insert"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def mutated(data: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    for act, where, value in changes:
        at = int(where * len(data))
        match act:
            case "set":
                data = data[:at] + bytes([value]) + data[at + 1 :]
            case "flip":
                data = (
                    data[:at]
                    + bytes(byte ^ 1 << value % 8 for byte in data[at : at + 1])
                    + data[at + 1 :]
                )
            case "cut":
                data = data[:at]
            case "repeat":
                data = data[:at] + data[at : at + value] * 2 + data[at + value :]
            case "remove":
                data = data[:at] + data[at + value :]
            case "insert":
                data = data[:at] + bytes([value]) * (value % 16) + data[at:]
    return data


@settings(max_examples=400, derandomize=True, database=None, deadline=None)
@given(data=st.sampled_from(SMALL), changes=mutations)
def test_a_damaged_file_is_a_picture_or_a_broken_image(
    data: bytes, changes: list[tuple[str, float, int]]
) -> None:
    data, start = mutated(data, changes), time.thread_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytest has undone what raycd.data.images says of them
        try:
            image, reason = images.decode(data, max_pixels=1_000_000, min_side=8), ""
        except BrokenImage as error:
            image, reason = None, error.reason
        if image:
            assert image.mode == "RGB"
            assert images.format_of(data) in images.FORMATS
            assert Preprocess((32, 32), (0.5,) * 3, (0.5,) * 3)(image).shape == (32, 32, 3)
            assert data_uri(images.fitted(image, 256)).startswith("data:image/jpeg")
        else:
            assert reason in images.REASONS
    assert time.thread_time() - start < 2


@pytest.fixture
def odd_paths(tmp_path: Path) -> dict[str, str]:
    """Return paths that a table may name and that are not readable files."""
    loop, folder, pipe, plain = (tmp_path / name for name in ("loop", "folder", "pipe", "plain"))
    loop.symlink_to(loop)
    folder.mkdir()
    os.mkfifo(pipe)
    plain.write_bytes(b"")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(tmp_path, os.O_RDONLY)
        server.bind(
            f"/proc/self/fd/{here}/socket"
        )  # the path itself may be too long for a socket's address
        os.close(here)
    inside = {
        "a symlink loop": "loop",
        "a symlink to nothing": "dangling",
        "a name of 300 bytes": "x" * 300,
        "a path of 5000 bytes": "x/" * 2500,
        "a folder": "folder",
        "a file as a folder": "plain/a.jpg",
        "a pipe": "pipe",
        "a socket": "socket",
        "a NUL": "a\0.jpg",
        "half a surrogate pair": "a\ud83d.jpg",
        "two colons": "a::b.jpg",
        "nothing": "",
    }
    paths = {what: os.path.join(tmp_path, name) for what, name in inside.items()}
    return {**paths, "an endless device": "/dev/zero", "a terminal": "/dev/tty"}


def test_an_odd_path_is_a_missing_image(odd_paths: dict[str, str]) -> None:
    """A pipe must not be waited for, a device has no end, and none of them ends the run."""
    reasons = {}
    for what, path in odd_paths.items():
        with pytest.raises(BrokenImage) as caught:
            images.load(path, max_pixels=1000, min_side=8)
        reasons[what] = caught.value.reason
        assert not set("\0\ud83d") & set(str(caught.value))
    assert reasons == dict.fromkeys(odd_paths, "missing")


def test_a_file_that_may_not_be_read_is_a_missing_image(tmp_path: Path) -> None:
    closed, was = tmp_path / "closed.jpg", os.geteuid()
    closed.write_bytes(CORPUS[0].data)
    closed.chmod(0)
    if was == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(BrokenImage, match="PermissionError") as caught:
            images.load(str(closed), max_pixels=1000, min_side=8)
    finally:
        os.seteuid(was)
    assert caught.value.reason == "missing"
