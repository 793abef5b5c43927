"""Shared fixtures: a cluster for the session, and a bundle that is made in a second."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from xdist.scheduler import LoadScopeScheduling

from tests.postgres import Postgres

if TYPE_CHECKING:
    from raycd.model.encoder import Encoder

# A shell that starts tests in the background has them ignore Ctrl-C, and so would every program
# that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["RAY_AUTH_MODE"] = os.environ.get(
    "RAY_AUTH_MODE", "disabled"
)  # before ray is imported anywhere
os.environ.setdefault(
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "serve.security.front:middlewares"
)  # as serve/start/local.py does
# As raycd.runtime sets them for a Ray of its own.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
# Ray ends workers that were idle for a second while others work: here the next test needs one, and
# torch would be imported again.
os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
os.environ.setdefault("RAY_metrics_report_interval_ms", "3000")  # ten seconds by default


class ByFolder(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Each room's tests, which share clusters and services, stay in one of xdist's processes.

    A room is a folder of tests/ with all below it: what ends its shared service does so after its
    last test. Not by xdist's groups: with pytest 9.2 its `loadgroup` does nothing, and says
    nothing.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "/".join(nodeid.partition("::")[0].split("/")[:2])


@pytest.hookimpl(tryfirst=True, optionalhook=True)  # before xdist's own, where xdist is on
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFolder:
    """Have xdist deal out rooms."""
    return ByFolder(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Use one thread: tensors here are tiny, and more threads only wait for each other."""
    import torch

    torch.set_num_threads(1)


TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 32,
        "layers": [1, 1, 1, 1],
        "width": 8,
        "head_width": 16,
        "patch_size": None,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="session")
def tiny_configs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of model configurations (encoder.configs) that knows "raycd-tiny": 32-pixel images,
    D = 16.
    """
    folder = tmp_path_factory.mktemp("configs")
    (folder / "raycd-tiny.json").write_text(json.dumps(TINY))
    return str(folder)


@pytest.fixture(scope="session")
def new_encoder(tiny_configs: str) -> Callable[[], Encoder]:
    """Return a function that makes the raycd-tiny encoder, always with the same random weights."""
    import torch

    from raycd.config import EncoderConfig
    from raycd.model import encoder

    def make() -> Encoder:
        torch.manual_seed(0)
        return encoder.create(EncoderConfig(name="raycd-tiny", pretrained="", configs=tiny_configs))

    return make


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Run a local Ray of two CPUs."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a whole pipeline that takes seconds; its pre-trained CLIP is made once. Do not
    change it.
    """
    return {
        "name": "tiny",
        "data": {
            "format": "synthetic",
            "max_missing": 0.1,
            "synthetic": {
                "train_images": 30,
                "val_images": 30,
                "train_triplets": 40,
                "val_triplets": 20,
            },
        },
        "encoder": {"name": "raycd-demo", "pretrained": "demo"},
        "pretrain": {
            "images": 48,
            "epochs": 1,
            "batch_size": 16,
            "cache": str(tmp_path_factory.mktemp("cache")),
        },
        "stage1": {"epochs": 1, "batch_size": 32, "lr": 1e-4},
        "mine": {"floor": 0.3, "eps_low": 0.4, "eps_high": 1.0, "neighbours": 16, "alpha": 0.0},
        "stage2": {
            "epochs": 3,
            "k": 1,
            "batch_size": 32,
            "bilinear_dim": 8,
            "projection_dim": 16,
            "hidden_dim": 16,
        },
        "compute": {"embed_workers": 1, "mine_workers": 1},
    }


@pytest.fixture(scope="session")
def s3_store() -> Iterator[dict[str, str]]:
    """Run an S3 server on loopback with the bucket raycd; give its environment variables."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    S3FileSystem(endpoint_url=variables["AWS_ENDPOINT_URL"], key="tests", secret="tests").mkdir(
        "raycd"
    )
    yield variables
    server.stop()


@pytest.fixture
def s3(s3_store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Put the variables of `s3_store` into the environment of this process."""
    from s3fs import S3FileSystem

    for name, value in s3_store.items():
        monkeypatch.setenv(name, value)
    yield s3_store
    S3FileSystem.clear_instance_cache()  # they know the server


@dataclass(frozen=True)
class TinyBundle:
    """A bundle of random weights and the images of its gallery."""

    folder: Path
    image_ids: list[str]
    images: list[Image.Image]


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """The demo's architecture with random weights, a small CLIP-CD head and twelve images, every
    third one striped.

    Do not write into it.
    """
    import torch

    from raycd import bundle
    from raycd.config import Config, EncoderConfig
    from raycd.model import encoder, fusion

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    patches = [Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)) for _ in range(12)]
    images = [
        patch.resize((40, 48), Image.Resampling.NEAREST) for patch in patches
    ]  # finer noise looks all alike
    image_ids = [f"image-{i}" for i in range(12)]
    clip = encoder.create(EncoderConfig(name="raycd-demo", pretrained=""))
    settings = fusion.HeadConfig(
        "clip_cd", clip.dim, bilinear_dim=8, projection_dim=32, hidden_dim=32
    )
    with torch.inference_mode():
        features = clip.encode_images(
            torch.stack([clip.preprocess(image) for image in images])
        ).numpy()
    categories = [["dress"] if i % 2 else ["shirt", "toptee"] for i in range(12)]
    base = tmp_path_factory.mktemp("tiny")
    paths = [str(base / f"{image_id}.png") for image_id in image_ids]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    attributes = [{"pattern": "striped"} if i % 3 == 0 else {} for i in range(12)]
    gallery = bundle.gallery_table(
        image_ids, categories, paths, features, clip.fingerprint(), attributes=attributes
    )
    config = Config(preset="demo", encoder=EncoderConfig(name="raycd-demo", pretrained=""))
    metrics = {"average": {"recall@10": 0.5}}
    folder, head = base / "bundle", fusion.create(settings).eval()
    texts = ["is blue", "has long sleeves"]
    bundle.write(folder, clip, head, settings, gallery, config, metrics, example_texts=texts)
    return TinyBundle(folder, image_ids, images)


@pytest.fixture(scope="session")
def bundle_with_head(
    tiny_bundle: TinyBundle, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return what makes the tiny bundle with another head of random weights, given its name.

    Do not write into it.
    """
    import torch

    from raycd import bundle
    from raycd.model import fusion

    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            tiny = bundle.load(tiny_bundle.folder)
            torch.manual_seed(0)
            settings = fusion.HeadConfig(name, tiny.encoder.dim, bilinear_dim=8)
            made[name] = tmp_path_factory.mktemp(name) / "bundle"
            head, gallery = fusion.create(settings).eval(), bundle.read_gallery(tiny.folder)
            metrics = {"average": {"recall@10": 0.5}}
            bundle.write(
                *(made[name], tiny.encoder, head, settings, gallery, tiny.config, metrics),
                example_texts=tiny.manifest.example_texts,
            )
        return made[name]

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL; skip the test where its programs are not installed."""
    with tempfile.TemporaryDirectory(
        prefix="raycd-postgres-"
    ) as folder:  # pytest's own folders are closed to others
        server = Postgres(Path(folder))
        server.start()
        yield server
        server.stop()
