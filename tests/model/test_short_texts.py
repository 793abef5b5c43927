"""Texts that are read no further than they go: the same features, of fewer states."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import open_clip
import pytest
import torch

from raycd.model import maps, short_texts
from raycd.model.encoder import Encoder
from tests.families import families, new, new_roberta, write_tokenizer

FAMILIES = list(families(Path()))
# Those whose text encoder looks back alone, and pools the state of a text's end
CAUSAL = {"CLIP ResNet", "CLIP ViT", "PE", "ConvNeXt", "longest, not square"}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    folder = tmp_path_factory.mktemp("short")
    write_tokenizer(folder)
    return lambda name: new(families(folder)[name], folder)


@contextmanager
def lengths(encoder: Encoder) -> Iterator[list[int]]:
    """Give the numbers of states that the text transformer computes inside of the block."""
    tower = getattr(encoder.clip, "text", encoder.clip)
    seen: list[int] = []
    hook = tower.transformer.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].shape[1])
    )
    yield seen
    hook.remove()


@pytest.fixture(autouse=True)
def steps_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """The families' contexts are short."""
    monkeypatch.setattr(short_texts, "STEP", 3)


def rounded(length: int, context: int) -> int:
    return min(3 * math.ceil(length / 3), context)


@torch.inference_mode()
@pytest.mark.parametrize("name", FAMILIES)
def test_features_are_open_clips_and_causal_ones_end_with_their_text(
    family: Callable[[str], Encoder], name: str
) -> None:
    encoder = family(name)
    context = int(encoder.model_config["text_cfg"]["context_length"])
    for texts in (["red " * 40, "is red", "", "is red or blue"], [""], ["is blue", "is red"]):
        tokens = encoder.tokenize(texts)
        expected = encoder.clip.encode_text(tokens, normalize=False)
        with lengths(encoder) as seen:
            found = encoder.encode_tokens(tokens)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        if name in CAUSAL:
            own = {rounded(len(row.nonzero()), context) for row in tokens}
            assert seen == sorted(own)
        else:
            assert seen in ([context], [context + 1])  # CoCa's class


@torch.inference_mode()
def test_an_end_that_the_configuration_names_is_found(family: Callable[[str], Encoder]) -> None:
    encoder = family("CLIP ViT")
    clip, tokens = encoder.clip, encoder.tokenize(["is blue", ""])
    clip.text_pool_type, clip.text_eos_id = "eos", int(tokens[0, 1])  # before the greatest number
    expected = clip.encode_text(tokens, normalize=False)
    with lengths(encoder) as seen:
        found = encoder.encode_tokens(tokens[:1])
    torch.testing.assert_close(found, expected[:1], rtol=1e-4, atol=1e-5)
    assert seen == [3]


@torch.inference_mode()
def test_padding_that_is_masked_is_left_out(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    encoder, _ = new_roberta(tmp_path / "tokenizer", tmp_path)
    tokens = encoder.tokenize(["is blue", "is blue and has long sleeves"])
    ends = [rounded(int(row.nonzero().max()) + 1, 16) for row in tokens]
    expected = encoder.clip.encode_text(tokens, normalize=False)
    embedding, seen = encoder.clip.text.transformer.embeddings, list[int]()
    embedding.register_forward_hook(lambda module, given, found: seen.append(found.shape[1]))
    torch.testing.assert_close(encoder.encode_tokens(tokens), expected, rtol=1e-4, atol=1e-5)
    encoder.encode_tokens(tokens, whole=True)
    assert seen == [*sorted(ends), tokens.shape[1]]
    assert ends[0] != ends[1]


@torch.inference_mode()
def test_states_inside_are_whole_where_they_are_read(family: Callable[[str], Encoder]) -> None:
    encoder = family("CLIP ViT")
    tokens = encoder.tokenize(["is blue"])
    with lengths(encoder) as seen:
        features, found = maps.encode_tokens(encoder, tokens)
    context = tokens.shape[1]
    assert seen == [context]
    assert found[maps.TOKENS].shape[1] == context
    torch.testing.assert_close(features, encoder.encode_tokens(tokens), rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_whole_texts(family: Callable[[str], Encoder]) -> None:
    encoder = family("CLIP ResNet")
    encoder.trainable("text", grad_checkpointing=True)
    encoder.clip.double()
    tokens = encoder.tokenize(["is blue", "has no belt and is longer"])

    def gradients(whole: bool) -> dict[str, torch.Tensor]:
        encoder.zero_grad()
        encoder.encode_tokens(tokens, whole=whole).square().sum().backward()  # type: ignore[no-untyped-call]  # torch's
        named = encoder.clip.named_parameters()
        return {name: own.grad.clone() for name, own in named if own.grad is not None}

    expected = gradients(whole=True)
    assert "positional_embedding" in expected
    for name, found in gradients(whole=False).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-8)


@torch.inference_mode()
def test_models_made_of_open_clips_encode_as_they_do(family: Callable[[str], Encoder]) -> None:
    class Doubled(open_clip.CustomTextCLIP):  # type: ignore[misc]  # open_clip has no types
        def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
            found: torch.Tensor = 2 * super().encode_text(text, normalize)
            return found

    encoder = family("PE")
    tokens = encoder.tokenize(["is blue"])
    expected = 2 * encoder.encode_tokens(tokens)
    encoder.clip.__class__ = Doubled
    torch.testing.assert_close(encoder.encode_tokens(tokens), expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_no_texts_have_no_features(family: Callable[[str], Encoder]) -> None:
    encoder = family("CLIP ViT")
    tokens = encoder.tokenize(["is blue"])
    assert encoder.encode_tokens(tokens[:0]).shape == (0, 24)
