from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raycd.config import PretrainConfig
from raycd.model.encoder import Encoder, load_saved
from raycd.train import pretrain
from raycd.train.pretrain import Contrast, cached


@pytest.fixture
def config(tmp_path: Path) -> PretrainConfig:
    return PretrainConfig(images=12, epochs=2, batch_size=6, cache=str(tmp_path / "cache"))


def test_the_pretrained_encoder_is_made_once_and_kept(
    config: PretrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = cached(config, 1.25)
    assert folder.parent == Path(config.cache)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    encoder = load_saved(folder)
    assert encoder.preprocess.target_pad == 1.25
    assert not encoder.training
    statistics = encoder.clip.visual.bn1
    assert statistics.num_batches_tracked == 4
    assert statistics.running_mean.abs().sum() > 0

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(pretrain, "pretrain", fail)
    assert cached(config, 1.25) == folder
    with pytest.raises(AssertionError, match="trained again"):
        cached(config, 1.5)
    with pytest.raises(AssertionError, match="trained again"):
        cached(config.model_copy(update={"seed": 1}), 1.25)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_same_seed_gives_the_same_encoder(config: PretrainConfig) -> None:
    prints = [pretrain.pretrain(settings, 1.25).fingerprint() for settings in (config, config)]
    torch.manual_seed(1)
    prints.append(pretrain.pretrain(config.model_copy(update={"seed": 1}), 1.25).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_pretraining_logits_are_cosines_times_the_learnt_scale(
    new_encoder: Callable[[], Encoder],
) -> None:
    encoder = new_encoder()
    pixels = torch.randint(
        0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    tokens = encoder.tokenize(["is red", "is blue"])
    with torch.inference_mode():
        image, text = encoder.encode_images(pixels), encoder.encode_tokens(tokens)
        expected = torch.cosine_similarity(image[:, None], text[None], dim=-1) / 0.07
        torch.testing.assert_close(
            Contrast(encoder)(pixels, tokens), expected, rtol=1e-4, atol=1e-4
        )
