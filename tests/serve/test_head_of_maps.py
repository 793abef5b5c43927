"""A head that needs maps, from the demo's images to an answer over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from raycd.config import Config
from raycd.evaluate import cached_query
from raycd.features import map_cache
from raycd.model import fusion
from raycd.runtime import pipeline
from raycd.runtime.evaluate import elsewhere
from raycd.runtime.stages.context import Context
from serve.args import ServeArgs
from tests.serve.asking import ask, png, problem

pytestmark = pytest.mark.slow

IMAGES = 3 * 60
STAGES = ["encoder", "catalogue", "zero_shot", "stage1", "embed", "maps", "mine", "filter"]
LAST = ["stage2", "evaluate", "bundle"]


@pytest.fixture(scope="module")
def settings(
    tiny_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return {
        **tiny_settings,
        "runs": str(tmp_path_factory.mktemp("runs")),
        "stage2": {"head": "cosmo", "epochs": 2, "k": 1, "batch_size": 32, "lr": 1e-3},
        "tracking": {"enabled": False},
    }


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], ray_cluster: None) -> Path:
    outcome = pipeline.run(Config.model_validate(settings))
    assert outcome.done == [*STAGES, *LAST]
    return Path(outcome.run.root)


def record(run: Path, stage: str) -> dict[str, Any]:
    return dict(json.loads((run / stage / "stage.json").read_text()))


def test_the_maps_are_counted_cached_and_reported(run: Path) -> None:
    found = record(run, "maps")
    assert found["shape"] == [512, 2, 2]
    assert found["counts"] == {"images": IMAGES, "bytes": IMAGES * 512 * 2 * 2 * 2}
    assert len(map_cache.read(run / "maps").slots) == IMAGES
    assert record(run, "stage2")["inputs"] == ["embed", "filter", "maps"]
    page = (run / "report.html").read_text()
    assert f"map of 512 x 2 x 2 for {IMAGES} images, 0.7 MiB" in page
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["variants"]) == ["zero_shot", "fine_tuned", "cosmo"]
    assert "maps" in metrics["seconds"]


def test_the_service_answers_for_an_image_that_is_sent_and_for_one_that_is_named(
    run: Path, start_replica: Callable[..., str]
) -> None:
    args = ServeArgs(
        bundle=str(run / "bundle"), gallery=str(run / "live.sqlite"), threads=1, cpus=0
    )
    url = start_replica(args, "cosmo")
    image_id = next(iter(map_cache.read(run / "bundle" / "maps" / "map").slots))
    paths = dict(_paths(run))
    with httpx.Client(base_url=url, timeout=60) as client:
        sent = ask(client, Path(paths[image_id]).read_bytes(), text="is blue").json()
        named = ask(client, image_id=image_id, text="is blue").json()
        assert len(sent["results"]) == len(named["results"]) > 0
        one, other = (
            {found["image_id"]: found["score"] for found in answer["results"]}
            for answer in (sent, named)
        )
        common = one.keys() & other.keys()
        assert len(common) >= len(one) - 1
        assert [one[key] for key in common] == pytest.approx(
            [other[key] for key in common], abs=1e-3
        )
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        picture = png(Image.fromarray(noise))
        added = client.put("/v1/gallery/new", files={"image": ("a.png", picture, "image/png")})
        assert added.status_code in (200, 201), added.text
        seen = client.get("/v1/gallery", params={"min_version": added.json()["version"]})
        assert seen.status_code == 200
        body = problem(ask(client, image_id="new", text="is blue"), 422)
        assert "send the image itself" in body["detail"]
        assert ask(client, picture, text="is blue").status_code == 200


def _paths(run: Path) -> list[tuple[str, str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(run / "bundle" / "gallery.parquet", columns=["image_id", "path"])
    return list(zip(table["image_id"].to_pylist(), table["path"].to_pylist(), strict=True))


@torch.inference_mode()
def test_the_model_is_the_same_on_data_that_are_embedded_anew(
    run: Path, settings: dict[str, Any]
) -> None:
    config = Config.model_validate(settings)
    context = Context(config, pipeline.run_folder(config))
    data = context.dataset
    found = elsewhere.variants(elsewhere.Model.of_run(context), data, "val", config)
    images, texts = context.features("embed")
    head, _ = fusion.load(run / "stage2" / "head")
    own = cached_query(head, images, texts, extras=context.extras(head.needs))
    queries = data.queries("val")
    torch.testing.assert_close(found[-1].query(queries), own(queries), rtol=1e-3, atol=1e-3)


def test_another_head_of_the_same_maps_computes_none_again(
    run: Path, settings: dict[str, Any]
) -> None:
    def again(head: str) -> list[str]:
        stage2 = {**settings["stage2"], "head": head, "epochs": 1}
        return pipeline.run(Config.model_validate({**settings, "stage2": stage2})).done

    before = (run / "maps" / "stage.json").stat().st_mtime_ns
    assert again("hffca") == ["tokens", *LAST]
    assert record(run, "tokens")["counts"]["bytes"] > 0
    assert again("clip_cd") == LAST
    assert record(run, "stage2")["inputs"] == ["embed", "filter"]
    assert not (run / "bundle" / "maps").exists()
    assert again("cosmo") == LAST
    assert (run / "maps" / "stage.json").stat().st_mtime_ns == before
