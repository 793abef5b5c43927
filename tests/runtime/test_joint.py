"""An encoder that composes image and text by itself: pipeline and service, without training."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from raycd import bundle
from raycd.config import Config, EncoderConfig
from raycd.errors import ConfigError, WeightsError
from raycd.evaluate import query_key
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.encoder import Encoder, load_saved
from raycd.model.joint import MOST_BYTES, Utf8
from raycd.runtime import pipeline
from raycd.runtime.stages.context import Context
from raycd.search.query import Query
from raycd.search.searcher import BrokenReference, Searcher
from serve.args import ServeArgs
from tests import tiny_joint
from tests.families import JAPANESE
from tests.serve.asking import ask, png, problem
from tests.serve.conftest import running_replica

TEXTS = ["is blue", JAPANESE, ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny random model of sentence-transformers."""
    tiny_joint.pretend()
    folder = tmp_path_factory.mktemp("model")
    tiny_joint.write(folder)
    return folder


@pytest.fixture
def encoder(model: Path) -> Encoder:
    return encoders.load(EncoderConfig(name="sentence_transformers", pretrained=str(model)))


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
    return [Image.fromarray(patch).resize((40, 48)) for patch in patches]


@torch.inference_mode()
def composed(encoder: Encoder, image: Image.Image, text: str) -> torch.Tensor:
    return encoder.compose(encoder.preprocess(image)[None], encoder.tokenize([text]))[0]


@torch.inference_mode()
def test_features_are_those_of_sentence_transformers_itself(encoder: Encoder, model: Path) -> None:
    from sentence_transformers import SentenceTransformer

    whole = SentenceTransformer(str(model), device="cpu")
    [image] = pictures(1)
    pixels = encoder.preprocess(image)
    square = Image.fromarray(pixels.numpy())
    expected = whole.encode([{"image": square, "text": text} for text in TEXTS[:2]])
    for text, other in zip(TEXTS[:2], expected, strict=True):
        assert np.allclose(composed(encoder, image, text), other, atol=1e-5)
    texts = encoder.encode_tokens(encoder.tokenize(TEXTS))
    assert np.allclose(texts, whole.encode(TEXTS), atol=1e-5)
    assert np.allclose(encoder.encode_images(pixels[None]), whole.encode([square]), atol=1e-5)


def test_a_saved_model_needs_its_first_folder_no_more(model: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    shutil.copytree(model, origin)
    before = encoders.load(EncoderConfig(name="sentence_transformers", pretrained=str(origin)))
    before.save(tmp_path / "one")
    shutil.rmtree(origin)
    load_saved(tmp_path / "one").save(tmp_path / "two")
    again = load_saved(tmp_path / "two")
    assert again.fingerprint() == before.fingerprint()
    [image] = pictures(1)
    assert torch.equal(composed(again, image, "is blue"), composed(before, image, "is blue"))


def test_other_weights_are_another_encoder(model: Path, tmp_path: Path, encoder: Encoder) -> None:
    shutil.copytree(model, tmp_path / "other")
    [weights] = (tmp_path / "other").rglob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    config = EncoderConfig(name="sentence_transformers", pretrained=str(tmp_path / "other"))
    assert encoders.load(config).fingerprint() != encoder.fingerprint()


def test_texts_travel_as_bytes_and_come_back() -> None:
    words = Utf8(None, None)
    texts = [*TEXTS, "👗 größer", "x" * 3000]
    assert Utf8.texts(words(texts))[:-1] == texts[:-1]
    assert [words.truncates(text) for text in texts] == [False] * 4 + [True]
    assert Utf8.texts(words(["あ" * 1000])) == ["あ" * (MOST_BYTES // 3)]  # whole letters


def write_bundle(folder: Path, encoder: Encoder) -> list[Image.Image]:
    images = pictures(8)
    paths = [str(folder.parent / f"{row}.png") for row in range(8)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    with torch.inference_mode():
        found = encoder.encode_images(torch.stack([encoder.preprocess(one) for one in images]))
    gallery = bundle.gallery_table(
        [f"image-{row}" for row in range(8)],
        [["dress"]] * 8,
        paths,
        found.numpy(),
        encoder.fingerprint(),
    )
    settings = fusion.HeadConfig("joint", encoder.dim)
    head = fusion.create(settings).eval()
    bundle.write(folder, encoder, head, settings, gallery, Config(), {}, example_texts=["is red"])
    return images


def test_a_search_asks_the_encoder_itself_also_of_pictures_in_the_gallery(
    encoder: Encoder, tmp_path: Path
) -> None:
    images = write_bundle(tmp_path / "bundle", encoder)
    assert "encoder/model/modules.json" in bundle.verify(tmp_path / "bundle").files
    searcher = Searcher(bundle.load(tmp_path / "bundle"), text_cache=9)
    with torch.inference_mode():
        gallery = F.normalize(
            encoder.encode_images(torch.stack([encoder.preprocess(one) for one in images])), dim=-1
        )
    expected = gallery @ F.normalize(composed(encoder, images[2], "is blue"), dim=0)
    queries = [
        Query(images[2], "is blue", top_k=8),
        Query(text="is blue", top_k=8),
        Query(image_id="image-2", text="is blue", top_k=8),
        Query(images[2], top_k=8),
    ]
    for _ in range(2):  # the second time the text is in the cache
        given, text, known, image = searcher.search(queries)
        for results in (given, known):
            assert [one.position for one in results] == expected.argsort(descending=True).tolist()
            assert [one.score for one in results] == pytest.approx(
                expected.sort(descending=True).values.tolist(), abs=1e-5
            )
    assert image[0].position == 2
    assert [one.score for one in text] != pytest.approx([one.score for one in given], abs=1e-3)
    (tmp_path / "2.png").unlink()
    with pytest.raises(BrokenReference, match=r"2\.png"):
        searcher.search(queries[2:3])


@pytest.mark.usefixtures("ray_cluster")
def test_the_service_answers_by_the_encoder_itself(encoder: Encoder, tmp_path: Path) -> None:
    images = write_bundle(tmp_path / "bundle", encoder)
    [expected] = Searcher(bundle.load(tmp_path / "bundle")).search(
        [Query(images[1], JAPANESE, top_k=8)]
    )
    database = str(tmp_path / "gallery.sqlite")
    args = ServeArgs(bundle=str(tmp_path / "bundle"), gallery=database, threads=1, cpus=0)
    with running_replica(args, "joint") as url, httpx.Client(base_url=url, timeout=60) as client:
        answer = ask(client, png(images[1]), text=JAPANESE, top_k=8).json()
        known = ask(client, image_id="image-1", text=JAPANESE, top_k=8).json()
        (tmp_path / "1.png").unlink()
        unread = ask(client, image_id="image-1", text=JAPANESE)
    assert problem(unread, 404)["detail"] == "the picture of 'image-1' cannot be read"
    for found in (answer, known):
        assert [one["image_id"] for one in found["results"]] == [one.image_id for one in expected]
        assert found["model"]["head"] == "joint"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_whole_pipeline_runs_without_any_training(
    model: Path, encoder: Encoder, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    settings = {
        **tiny_settings,
        "runs": str(tmp_path),
        "encoder": {"name": "sentence_transformers", "pretrained": str(model)},
        "stage1": {"finetune": "none"},
        "stage2": {"head": "joint"},
        "mine": {**tiny_settings["mine"], "floor": -1, "eps_low": -1},
        "tracking": {"enabled": False},
    }
    outcome = pipeline.run(Config.model_validate(settings))
    assert outcome.metrics is not None
    context = Context(Config.model_validate(settings), outcome.run)
    queries = context.composed()
    rows = context.dataset.queries("val")
    asked = {query_key(row) for row in rows}
    assert queries.among(asked).keys() == asked
    text = query_key(rows[0]).partition("\n")[2]
    path = context.paths()[rows[0]["reference"]]
    expected = composed(encoder, Image.open(str(path)), text)
    assert torch.allclose(queries.take([query_key(rows[0])])[0], expected, atol=1e-5)
    ranks = context.recorded("evaluate", "ranks")
    assert ranks["joint"] != ranks["fine_tuned"]
    assert ranks["fine_tuned"] == ranks["zero_shot"]
    assert bundle.load(outcome.run.local("bundle")).encoder.composes


# ---- mistakes


@pytest.mark.parametrize(
    ("changes", "composes", "message"),
    [
        ({"stage2": {"head": "joint"}}, False, "for encoders that compose"),
        ({"stage1": {"finetune": "text"}}, True, r"is not fine-tuned(.|\n)*finetune none"),
    ],
)
def test_an_encoder_is_not_asked_for_what_it_cannot_do(
    changes: dict[str, Any], composes: bool, message: str
) -> None:
    from raycd.train.fuse import check_joint

    with pytest.raises(ConfigError, match=message):
        check_joint(Config.model_validate(changes), composes)
    check_joint(Config.model_validate({"stage1": {"finetune": "none"}}), True)


def test_target_pad_is_refused_before_the_model_is_looked_for() -> None:
    asked = {"name": "sentence_transformers", "pretrained": "nowhere", "target_pad": 1.5}
    with pytest.raises(ConfigError, match=r"whole pictures(.|\n)*1.5(.|\n)*preprocess auto"):
        encoders.load(EncoderConfig.model_validate(asked))


def test_a_model_that_only_knows_texts_is_refused(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_joint.TinyJoint, "modalities", ["text"])
    with pytest.raises(WeightsError, match="does not compose image and text"):
        encoders.load(EncoderConfig(name="sentence_transformers", pretrained=str(model)))


def test_code_that_comes_with_a_model_is_not_run(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "other")
    (tmp_path / "other" / "modeling.py").write_text("raise SystemExit('it was run')")
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["type"] = "modeling.TinyJoint"
    (tmp_path / "other" / "modules.json").write_text(json.dumps(modules))
    config = EncoderConfig(name="sentence_transformers", pretrained=str(tmp_path / "other"))
    with pytest.raises(WeightsError, match="code is in sentence-transformers itself"):
        encoders.load(config)


def test_without_sentence_transformers_the_remedy_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(WeightsError, match=r"pip install 'raycd\[joint\]'"):
        encoders.load(EncoderConfig(name="sentence_transformers", pretrained=str(model)))
