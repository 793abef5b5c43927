from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raycd.config import DataConfig
from raycd.model.embed import (
    DecodeImages,
    EmbedImages,
    EmbedTexts,
    EncodeImages,
    frozen,
    overlapped,
)
from raycd.model.encoder import Encoder

MakeEncoder = Callable[[], Encoder]


@pytest.fixture
def images(tmp_path: Path) -> dict[str, str | None]:
    """Return two whole images and five broken ones, by id."""
    rng = np.random.default_rng(0)
    for name, size in (("wide", (40, 60)), ("tall", (64, 33))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    Image.new("RGB", (4, 40)).save(tmp_path / "thin.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "wide.png").read_bytes()[:500])
    (tmp_path / "empty.png").write_bytes(b"")
    names = ("cut", "wide", "empty", "thin", "tall", "absent")
    return {**{name: str(tmp_path / f"{name}.png") for name in names}, "unknown": None}


EXPECTED = ["truncated", "ok", "empty", "too_small", "ok", "missing", "missing"]


def test_broken_images_get_a_status_and_zeros_in_their_place(
    new_encoder: MakeEncoder, images: dict[str, str | None]
) -> None:
    encoder = new_encoder()
    found = EmbedImages(encoder, DataConfig())({"key": list(images), "path": list(images.values())})
    assert list(found["key"]) == list(images)
    assert list(found["status"]) == EXPECTED
    assert found["feature"].shape == (7, 16)
    assert found["feature"].dtype == np.float32
    assert found["feature"].any(axis=1).tolist() == [status == "ok" for status in EXPECTED]


def test_features_are_those_of_the_encoder(
    new_encoder: MakeEncoder, images: dict[str, str | None]
) -> None:
    encoder = new_encoder()
    found = EmbedImages(encoder, DataConfig())({"key": list(images), "path": list(images.values())})
    for row, name in ((1, "wide"), (4, "tall")):
        pixels = encoder.preprocess(Image.open(images[name] or ""))
        with torch.inference_mode():
            expected = encoder.encode_images(pixels[None])[0].numpy()
        np.testing.assert_allclose(found["feature"][row], expected, rtol=1e-4, atol=1e-5)


def test_decoding_and_encoding_may_be_apart(
    new_encoder: MakeEncoder, images: dict[str, str | None]
) -> None:
    encoder = new_encoder()
    batch = {"key": list(images), "path": list(images.values())}
    decoded = DecodeImages(encoder.preprocess.to_dict(), DataConfig())(batch)
    assert decoded["pixels"].shape == (7, 32, 32, 3)
    assert decoded["pixels"].dtype == np.uint8
    assert not decoded["pixels"][0].any()
    apart, together = EncodeImages(encoder)(decoded), EmbedImages(encoder, DataConfig())(batch)
    for name in ("key", "status", "feature"):
        assert (apart[name] == together[name]).all()


def test_a_batch_of_nothing_readable_does_not_reach_the_encoder() -> None:
    class Untouched(Encoder):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.model_config = {"embed_dim": 16}

    batch = {"key": ["a"], "status": ["missing"], "pixels": np.zeros((1, 32, 32, 3), np.uint8)}
    assert EncodeImages(Untouched())(batch)["feature"].tolist() == [[0.0] * 16]


def test_batches_keep_their_size_to_the_encoder_whatever_is_readable_in_them(
    new_encoder: MakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, sizes = new_encoder(), list[int]()
    encode = encoder.encode_images

    def noted(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(encoder, "encode_images", noted)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    pixels.setflags(write=False)  # as Ray gives them
    whole = {"key": list("abcd"), "status": np.array(["ok"] * 4, object), "pixels": pixels}
    some = whole | {"status": np.array(["ok", "missing", "ok", "missing"], object)}
    expected, found = (EncodeImages(encoder)(batch)["feature"] for batch in (whole, some))
    assert sizes == [4, 4]
    np.testing.assert_array_equal(found[::2], expected[::2])
    assert not found[1::2].any()


def test_limits_of_images_are_the_data_settings(
    new_encoder: MakeEncoder, images: dict[str, str | None]
) -> None:
    decode = DecodeImages(
        new_encoder().preprocess.to_dict(), DataConfig(max_pixels=2200, min_side=4)
    )
    found = decode(
        {"key": ["wide", "thin", "tall"], "path": [images["wide"], images["thin"], images["tall"]]}
    )
    assert list(found["status"]) == ["too_large", "ok", "ok"]


def test_texts_are_encoded_in_their_order(new_encoder: MakeEncoder) -> None:
    encoder = new_encoder()
    texts = ["Is red", "", "Is blue and long " * 20]
    found = EmbedTexts(encoder)({"key": np.array(texts, object)})
    assert list(found["key"]) == texts
    assert list(found["status"]) == ["ok", "ok", "ok"]
    with torch.inference_mode():
        expected = encoder.encode_tokens(encoder.tokenize(texts)).numpy()
    np.testing.assert_array_equal(found["feature"], expected)


def test_a_batch_is_begun_before_the_features_of_the_one_before_are_waited_for(
    new_encoder: MakeEncoder, images: dict[str, str | None]
) -> None:
    encoder, seen = new_encoder(), list[str]()
    decode = DecodeImages(encoder.preprocess.to_dict(), DataConfig())
    batches = [decode({"key": [name], "path": [images[name]]}) for name in ("wide", "tall", "cut")]

    def read() -> Iterator[dict[str, object]]:
        for batch in batches:
            seen.append(f"reads {batch['key'][0]}")
            yield dict(batch)

    step = EncodeImages(encoder)
    for found, batch in zip(overlapped(step, read()), batches, strict=True):
        seen.append(f"has {found['key'][0]}")
        np.testing.assert_array_equal(found["feature"], step(batch)["feature"])
    assert seen == [
        *("reads wide", "reads tall", "has wide", "reads cut", "has tall", "has cut"),
    ]


def test_a_frozen_encoder_is_the_same_without_gradients(new_encoder: MakeEncoder) -> None:
    encoder = frozen(new_encoder(), "fp32", "cpu")
    assert encoder.fingerprint() == new_encoder().fingerprint()
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.training
