"""Textual inversion from titles alone: prompts, what is masked, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raycd import bundle
from raycd.config import Config
from raycd.errors import ConfigError
from raycd.model import fusion
from raycd.model.encoder import Encoder
from raycd.model.fusion import lincir
from raycd.search.query import Query
from raycd.search.searcher import Searcher
from raycd.train.invert import Invert, masked_run
from raycd.train.loop import Loop, Schedule
from raycd.train.task import Silence
from tests.conftest import TinyBundle

LENGTH = 16
TITLES = [f"{colour} {kind}" for colour in ("red", "blue", "green") for kind in ("dress", "shirt")]


def made(encoder: Encoder, dropout: float = 0.0) -> tuple[lincir.LinCIR, fusion.HeadConfig]:
    torch.manual_seed(0)
    config = fusion.HeadConfig(
        "lincir",
        encoder.dim,
        dropout=dropout,
        extra={"words": [LENGTH]},
        text=encoder.model_config,
    )
    head = fusion.create(config)
    assert isinstance(head, lincir.LinCIR)
    lincir.fill(head, encoder.clip)
    return head.eval(), config


@pytest.fixture(scope="module")
def encoder(new_encoder: Callable[[], Encoder]) -> Encoder:
    return new_encoder()


def test_a_prompt_is_a_photo_of_a_word_that_the_text_says(encoder: Encoder) -> None:
    head, _ = made(encoder)
    [prompt] = head.prompts(encoder.tokenize(["is red"]))
    spoken = encoder.tokenize(["a photo of x that is red"])[0]
    word = 4
    assert prompt[word] == head.start
    assert torch.equal(prompt[:word], spoken[:word])
    assert torch.equal(prompt[word + 1 :], spoken[word + 1 :])
    [cut] = head.prompts(encoder.tokenize(["red " * 30]))
    assert cut[-1] == head.end
    assert (cut == head.end).sum() == 1


def test_the_query_is_what_the_text_encoder_makes_of_the_prompt_with_that_word(
    encoder: Encoder,
) -> None:
    """Where phi gives the embedding of a word, the query is the feature of the text with it."""
    head, _ = made(encoder)
    words, image_BD = encoder.tokenize(["is red"]), torch.randn(1, encoder.dim)
    dress = encoder.tokenize(["dress"])[0, 1]
    last = head.phi[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(head.embedding.weight[dress])
        found = head(image_BD, image_BD, words=words)
        expected = encoder.encode_tokens(encoder.tokenize(["a photo of dress that is red"]))
    torch.testing.assert_close(found, F.normalize(expected, dim=-1))
    assert not head.embedding._forward_hooks


def test_at_least_half_of_a_title_becomes_one_word(encoder: Encoder) -> None:
    start, end = encoder.tokenize([""])[0, :2].tolist()
    line = encoder.tokenize(["one two three four five"])[0]
    words = line[1:6].tolist()
    lengths = set()
    for one in (0.0, 0.5, 0.99):
        for other in (0.0, 0.5, 0.99):
            masked = masked_run(line, (one, other), start, end).tolist()
            inside = masked[1 : masked.index(end)]
            at = inside.index(start)
            left = inside[:at] + inside[at + 1 :]
            assert left == words[:at] + words[len(words) - (len(left) - at) :]
            lengths.add(len(left))
            assert len(masked) == LENGTH
    assert lengths == {0, 1, 2}
    empty = masked_run(encoder.tokenize([""])[0], (0.5, 0.5), start, end).tolist()
    assert empty[:3] == [start, start, end]


def test_inversion_learns_from_titles_and_leaves_the_text_encoder_as_it_is(
    encoder: Encoder,
) -> None:
    head, _ = made(encoder)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    config = Config.model_validate({"stage2": {"head": "lincir", "lr": 3e-3}})
    task = Invert(head, TITLES, encoder.tokenizer, config)
    loop = Loop(task, Schedule(25, 6, 3e-3, 0), bar=lambda total, start: Silence())
    history = loop.run()
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    for name, value in head.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("phi."))


def test_inversion_computes_in_the_arithmetic_that_is_asked_for(encoder: Encoder) -> None:
    found = []
    for wanted in ("fp32", "bf16"):
        config = Config.model_validate({"stage2": {"head": "lincir", "precision": wanted}})
        task = Invert(made(encoder)[0], TITLES, encoder.tokenizer, config)
        (batch,) = task.batches(0, [np.arange(len(TITLES))])
        torch.manual_seed(0)
        found.append(task.loss(task.module, batch))
        assert found[-1].dtype == torch.float32
    assert found[0] != found[1]
    torch.testing.assert_close(*found, rtol=0.05, atol=0)


def test_a_saved_head_answers_as_before(encoder: Encoder, tmp_path: Path) -> None:
    head, config = made(encoder, dropout=0.5)
    fusion.save(head, config, tmp_path)
    again, read = fusion.load(tmp_path, dim=encoder.dim)
    image_BD, words = torch.randn(3, encoder.dim), encoder.tokenize(["red", "blue", ""])
    assert read == config
    assert torch.equal(
        again(image_BD, image_BD, words=words), head(image_BD, image_BD, words=words)
    )


def test_a_bundle_with_it_answers_with_the_query_of_the_head(
    tiny_bundle: TinyBundle, tmp_path: Path
) -> None:
    tiny, folder = bundle.load(tiny_bundle.folder), tmp_path / "bundle"
    head, config = made(tiny.encoder)
    gallery = bundle.read_gallery(tiny.folder)
    bundle.write(folder, tiny.encoder, head, config, gallery, tiny.config, {})
    searcher = Searcher(bundle.load(folder), text_cache=10)
    asked = [Query(image_id=tiny_bundle.image_ids[0], text="is red", top_k=12)] * 2
    first, again = searcher.search(asked[:1])[0], searcher.search(asked)[1]
    assert [result.image_id for result in first] == [result.image_id for result in again]
    image_GD = torch.tensor(gallery["feature"].to_pylist())
    words = tiny.encoder.tokenize(["is red"])
    with torch.no_grad():
        query_BD = head(image_GD[:1], image_GD[:1], words=words)
    cosines = (F.normalize(image_GD, dim=-1) @ query_BD[0]).tolist()
    expected = dict(zip(tiny_bundle.image_ids, cosines, strict=True))
    assert {r.image_id: r.score for r in first} == pytest.approx(expected, abs=1e-5)


def test_a_text_encoder_of_another_kind_is_refused(encoder: Encoder) -> None:
    text = {**encoder.model_config, "text_cfg": {"hf_model_name": "roberta-base"}}
    config = fusion.HeadConfig("lincir", 16, extra={"words": [LENGTH]}, text=text)
    with pytest.raises(ConfigError, match="roberta-base"):
        fusion.create(config)
