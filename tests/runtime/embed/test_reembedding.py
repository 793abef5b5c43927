import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import index
from raycd.config import Config, cli
from raycd.gallery.records import Change, Delete, Put
from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.stored import StoredGallery
from raycd.model import encoder as encoders
from raycd.model.embed import EmbedImages
from raycd.model.encoder import Encoder
from raycd.runtime.embed import reembedding
from tests.processes import start, wait_for

KINDS = ["sqlite", "postgresql"]
OLD = "0" * 64  # another encoder
CONFIG = Config.model_validate({"compute": {"embed_workers": 2, "threads": 1}})
SMALL = ["--embed.batch_size", "1", "--compute.embed_workers", "1", "--compute.threads", "1"]
PAGE = reembedding.BATCHES  # images that the job stores at once with these


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Any) -> Encoder:
    """Return the new encoder."""
    return encoders.load_saved(tiny_bundle.folder / "encoder")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gallery.sqlite"


@pytest.fixture
def url(request: pytest.FixtureRequest, file: Path) -> str:
    """Return the URL of an empty database, of SQLite unless the test is given another kind."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return str(file)
    return str(request.getfixturevalue("postgres").create(f"reembedding_{time.monotonic_ns()}"))


@pytest.fixture
def gallery_db(url: str) -> Iterator[GalleryDatabase]:
    with GalleryDatabase.open(url) as opened:
        yield opened


@pytest.fixture
def stored(gallery_db: GalleryDatabase, url: str) -> StoredGallery:
    """Return the gallery; its pictures are files of their own."""
    return StoredGallery(url, gallery_db, None)


def put(image_id: str, path: str | None) -> Put:
    """Return an image with a feature of the old encoder."""
    return Put(image_id, np.ones(4, np.float32), path=path)


def pictures(tiny_bundle: Any, size: int = 12) -> list[str]:
    paths = sorted(str(path) for path in tiny_bundle.folder.parent.glob("*.png"))
    return [paths[n % len(paths)] for n in range(size)]


@dataclass(frozen=True)
class Meanwhile(StoredGallery):
    """A gallery that is written to between reading a page and storing its features."""

    happens: Callable[[], object] = lambda: None

    def locate(self, path: str | None) -> str | None:
        self.happens()
        return path


def features(gallery_db: GalleryDatabase, encoder: Encoder) -> dict[str, np.ndarray]:
    found = gallery_db.load(encoder.fingerprint())
    return dict(zip(found.table["image_id"].to_pylist(), found.features_GD, strict=True))


def run(*argv: str) -> int:
    return cli.run(index.main, argv, prog="jobs/index.py", description="", flags=index.flags)


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_every_image_gets_the_feature_of_the_new_encoder_and_keeps_the_old_one(
    ray_cluster: None,
    tiny_bundle: Any,
    encoder: Encoder,
    gallery_db: GalleryDatabase,
    stored: StoredGallery,
) -> None:
    paths = pictures(tiny_bundle)
    gallery_db.write([put(f"image {n}", path) for n, path in enumerate(paths)], OLD)
    before = gallery_db.version()
    done = reembedding.reembed(stored, encoder, CONFIG)
    assert (done.encoded, done.broken) == (12, {})
    assert gallery_db.version() == before
    assert gallery_db.encoders() == {OLD: 12, encoder.fingerprint(): 12}
    expected = EmbedImages(encoder, CONFIG.data)({"key": paths, "path": paths})["feature"]
    found = features(gallery_db, encoder)
    np.testing.assert_allclose(
        np.array([found[f"image {n}"] for n in range(12)]), expected, atol=1e-5
    )


def test_what_was_encoded_already_is_not_encoded_again(
    ray_cluster: None,
    tiny_bundle: Any,
    encoder: Encoder,
    gallery_db: GalleryDatabase,
    stored: StoredGallery,
) -> None:
    gallery_db.write([put(f"image {n}", path) for n, path in enumerate(pictures(tiny_bundle))], OLD)
    assert reembedding.reembed(stored, encoder, CONFIG).encoded == 12
    assert reembedding.reembed(stored, encoder, CONFIG).encoded == 0


@pytest.mark.parametrize("url", KINDS, indirect=True)
def test_what_is_written_while_it_encodes_is_encoded_too(
    ray_cluster: None, tiny_bundle: Any, encoder: Encoder, gallery_db: GalleryDatabase, url: str
) -> None:
    paths = pictures(tiny_bundle)
    gallery_db.write(
        [put("replaced", paths[0]), put("deleted", paths[1]), put("kept", paths[2])], OLD
    )
    changes: list[list[Change]] = [
        [put("replaced", paths[3]), Delete("deleted"), put("new", paths[4])]
    ]
    busy = Meanwhile(
        url, gallery_db, None, lambda: changes and gallery_db.write(changes.pop(), OLD)
    )

    done = reembedding.reembed(busy, encoder, CONFIG)
    assert (done.encoded, done.broken) == (3, {})
    expected = EmbedImages(encoder, CONFIG.data)({"key": paths, "path": paths})["feature"]
    found = features(gallery_db, encoder)
    assert found.keys() == {"kept", "replaced", "new"}
    for image_id, n in {"kept": 2, "replaced": 3, "new": 4}.items():
        np.testing.assert_allclose(found[image_id], expected[n], atol=1e-5)


def test_a_gallery_that_never_stops_changing_does_not_keep_the_job_for_ever(
    ray_cluster: None, tiny_bundle: Any, encoder: Encoder, gallery_db: GalleryDatabase, url: str
) -> None:
    paths = pictures(tiny_bundle)
    gallery_db.write([put("first", paths[0])], OLD)
    numbers = count()
    busy = Meanwhile(
        str(file),
        gallery_db,
        None,
        lambda: gallery_db.write([put(f"image {next(numbers)}", paths[0])], OLD),
    )
    assert reembedding.reembed(busy, encoder, CONFIG).encoded == 2
    assert len(gallery_db.unencoded(encoder.fingerprint())) == 1


def test_images_without_a_readable_picture_are_named_with_the_reason(
    ray_cluster: None,
    tiny_bundle: Any,
    encoder: Encoder,
    gallery_db: GalleryDatabase,
    stored: StoredGallery,
    tmp_path: Path,
) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"not an image")
    there = pictures(tiny_bundle)[0]
    gallery_db.write(
        [
            put("none", None),
            put("gone", str(tmp_path / "gone.png")),
            put("damaged", str(damaged)),
            put("fine", there),
        ],
        OLD,
    )
    done = reembedding.reembed(stored, encoder, CONFIG)
    assert done.encoded == 1
    assert done.broken == {"none": "missing", "gone": "missing", "damaged": "not_an_image"}


def test_a_picture_of_few_pixels_that_the_service_has_taken_is_encoded(
    ray_cluster: None,
    encoder: Encoder,
    gallery_db: GalleryDatabase,
    stored: StoredGallery,
    tmp_path: Path,
) -> None:
    from PIL import Image

    Image.new("RGB", (3, 3), "red").save(tmp_path / "small.png")
    gallery_db.write([put("small", str(tmp_path / "small.png"))], OLD)
    assert reembedding.reembed(stored, encoder, CONFIG).encoded == 1


def test_the_job_tells_how_many_and_what_comes_next(
    ray_cluster: None,
    tiny_bundle: Any,
    gallery_db: GalleryDatabase,
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gallery_db.write([put(f"image {n}", path) for n, path in enumerate(pictures(tiny_bundle))], OLD)
    assert run("--gallery", str(file), "--bundle", str(tiny_bundle.folder)) == 0
    said = capsys.readouterr().out
    assert "encoded:     12 images now, 12 in the gallery" in said
    assert f"user_config {{bundle: {tiny_bundle.folder}}}" in said


def test_the_job_ends_with_2_and_one_message_where_images_cannot_be_encoded(
    ray_cluster: None,
    tiny_bundle: Any,
    gallery_db: GalleryDatabase,
    file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gallery_db.write(
        [put(f"image {n}", None) for n in range(7)] + [put("fine", pictures(tiny_bundle)[0])], OLD
    )
    assert run("--gallery", str(file), "--bundle", str(tiny_bundle.folder)) == 2
    said = capsys.readouterr()
    assert "encoded:     1 images now" in said.out
    assert "next:" not in said.out
    message = said.err.partition("error: ")[2]
    assert message.startswith("7 images of the gallery cannot be encoded")
    assert "image 0 (missing)" in message
    assert "image 6" not in message


@pytest.mark.parametrize(
    "argv", [["--gallery", "x.sqlite"], ["--bundle", "runs/x/bundle"], ["--pictures", "x"]]
)
def test_half_a_command_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    assert "takes --gallery and --bundle" in capsys.readouterr().err


def test_a_database_that_is_not_there_is_told_and_not_made(
    tiny_bundle: Any, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--gallery", str(file), "--bundle", str(tiny_bundle.folder)) == 2
    assert "there is no gallery" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.slow
def test_a_job_that_was_killed_does_the_rest_when_it_is_started_again(
    tiny_bundle: Any, encoder: Encoder, gallery_db: GalleryDatabase, file: Path
) -> None:
    size, fingerprint = 4 * PAGE, encoder.fingerprint()
    gallery_db.write(
        [put(f"image {n}", path) for n, path in enumerate(pictures(tiny_bundle, size))], OLD
    )
    killed = started(file, tiny_bundle)
    wait_for(lambda: gallery_db.encoders().get(fingerprint), killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = gallery_db.encoders()[fingerprint]
    assert 0 < before < size
    job = started(file, tiny_bundle)
    said, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert f"encoded:     {size - before:,} images now, {size:,} in the gallery" in said
    assert gallery_db.encoders() == {OLD: size, fingerprint: size}


def started(file: Path, tiny_bundle: Any) -> subprocess.Popen[str]:
    bundle = str(tiny_bundle.folder)
    return start("jobs/index.py", "--gallery", str(file), "--bundle", bundle, *SMALL)
