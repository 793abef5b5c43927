"""The whole pipeline with an encoder of SigLIP2's form, and a query over HTTP, in Japanese."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from raycd import bundle
from raycd.config import Config
from raycd.errors import WeightsError
from raycd.model.encoder import load_saved
from raycd.runtime import pipeline
from raycd.search.query import Query
from raycd.search.searcher import Searcher
from serve.args import ServeArgs
from tests.families import CORPUS, JAPANESE, families, new, write_tokenizer
from tests.serve.asking import ask, png
from tests.serve.conftest import running_replica


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved encoder of SigLIP2's form; the tokenizer's own folder is gone."""
    base = tmp_path_factory.mktemp("siglip2")
    write_tokenizer(base / "hub")
    new(families(base / "hub")["SigLIP2"], base).save(base / "encoder")
    shutil.rmtree(base / "hub")
    return base / "encoder"


def write_bundle(folder: Path, encoder_folder: Path) -> None:
    """Write a bundle of the encoder and six pictures of noise, with the sum for a head."""
    from raycd.model import fusion

    encoder = load_saved(encoder_folder)
    settings = fusion.HeadConfig("sum", encoder.dim)
    features = np.random.default_rng(0).normal(size=(6, encoder.dim)).astype(np.float32)
    gallery = bundle.gallery_table(
        [f"image-{row}" for row in range(6)],
        [["dress"]] * 6,
        [None] * 6,
        features,
        encoder.fingerprint(),
    )
    head = fusion.create(settings).eval()
    config = Config.model_validate({"encoder": {"pretrained": str(encoder_folder)}})
    bundle.write(folder, encoder, head, settings, gallery, config, {}, example_texts=CORPUS)


def test_a_bundle_holds_the_tokenizer_and_verifies_it(encoder_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write_bundle(folder, encoder_folder)
    manifest = bundle.verify(folder)
    assert {"encoder/tokenizer.json", "encoder/tokenizer_config.json"} <= manifest.files.keys()
    loaded = bundle.load(folder)
    assert loaded.encoder.tokenizer.files == load_saved(encoder_folder).tokenizer.files
    [results] = Searcher(loaded).search([Query(text=JAPANESE, top_k=3)])
    assert len(results) == 3
    # A file that the bundle was not written with is not read, one that was changed is refused
    (folder / "encoder" / "added_tokens.json").write_text(json.dumps({"dress": 7}))
    assert bundle.load(folder).encoder.fingerprint() == loaded.manifest.encoder.fingerprint
    with (folder / "encoder" / "tokenizer.json").open("a") as file:
        file.write("\n")
    for read in (bundle.load, bundle.verify):
        with pytest.raises(WeightsError, match=r"tokenizer\.json is not the file"):
            read(folder)


@pytest.mark.usefixtures("ray_cluster")
def test_a_query_in_japanese_is_answered_over_http(encoder_folder: Path, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", encoder_folder)
    check_service(tmp_path / "bundle", Image.new("RGB", (90, 60), "blue"))


def check_service(folder: Path, picture: Image.Image) -> None:
    """Ask a replica in Japanese, also for more than it can take, and compare with the bundle."""
    searcher = Searcher(bundle.load(folder))
    [expected] = searcher.search([Query(picture, JAPANESE, top_k=4)])
    args = ServeArgs(bundle=str(folder), gallery="none", threads=1, cpus=0)
    with (
        running_replica(args, "siglip2") as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        response = ask(client, png(picture), text=JAPANESE, top_k=4)
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["warnings"] == []
        assert [one["image_id"] for one in answer["results"]] == [one.image_id for one in expected]
        for one, other in zip(answer["results"], expected, strict=True):
            assert one["score"] == pytest.approx(other.score, abs=1e-4)
        long = ask(client, png(picture), text=JAPANESE * 20, top_k=4).json()
        assert len(long["warnings"]) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_whole_pipeline_runs_with_an_encoder_of_siglip2s_form(
    encoder_folder: Path, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    settings = {
        **tiny_settings,
        "runs": str(tmp_path),
        "encoder": {"pretrained": str(encoder_folder)},
        "stage1": {**tiny_settings["stage1"], "grad_checkpointing": True},
        "mine": {**tiny_settings["mine"], "floor": -1, "eps_low": -1},
        "tracking": {"enabled": False},
    }
    outcome = pipeline.run(Config.model_validate(settings))
    assert outcome.metrics is not None
    folder = outcome.run.local("bundle")
    tuned, before = bundle.load(folder).encoder, load_saved(encoder_folder)
    assert tuned.preprocess == before.preprocess
    assert tuned.preprocess.resize_mode == "squash"
    assert tuned.tokenizer.files == before.tokenizer.files
    assert tuned.fingerprint() != before.fingerprint()  # it has learnt
    assert (tuned.clip.logit_bias, tuned.clip.logit_scale) == (
        before.clip.logit_bias,
        before.clip.logit_scale,
    )
    check_service(folder, Image.new("RGB", (64, 64), "blue"))
