"""Stage 1 in chunks has the gradient of the whole batch, in the memory of a chunk."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from raycd.model.encoder import Encoder, Finetune
from raycd.model.loss import batch_classification_loss
from raycd.train.finetune import SumOfFeatures
from raycd.train.grad_cache import encode_in_chunks
from tests import families

MakeEncoder = Callable[[], Encoder]
TRIPLETS = 8


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    folder = tmp_path_factory.mktemp("configs")
    known = families.families(folder)
    return lambda name: families.new(known[name], folder)


def batch(encoder: Encoder) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = encoder.preprocess.size
    generator = torch.Generator().manual_seed(0)
    shape = (2 * TRIPLETS, height, width, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return pixels, encoder.tokenize([f"is {n} and red" for n in range(TRIPLETS)])


def gradients(
    encoder: Encoder, finetune: Finetune, chunk: int, *, checkpointing: bool = False
) -> dict[str, torch.Tensor]:
    """Return the loss and the gradient of the trained parameters, where two targets are equal."""
    encoder.trainable(finetune, grad_checkpointing=checkpointing)
    query, target = SumOfFeatures(encoder, chunk)(*batch(encoder))
    number = torch.arange(TRIPLETS) % (TRIPLETS - 1)
    loss = batch_classification_loss(query, target, number, 20.0)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
    found = {key: p.grad for key, p in encoder.clip.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}


@pytest.mark.parametrize(
    ("name", "finetune", "chunk", "checkpointing"),
    [
        ("CLIP ResNet", "both", 3, False),
        ("CLIP ResNet", "both", 1, True),
        ("CLIP ResNet", "text", 4, False),
        ("CLIP ViT", "both", 3, True),
        ("CLIP ViT", "image", 5, False),
        ("CLIP ViT", "both", 100, False),
    ],
)
def test_the_gradient_in_chunks_is_that_of_the_whole_batch(
    make: Callable[[str], Encoder], name: str, finetune: Finetune, chunk: int, checkpointing: bool
) -> None:
    expected = gradients(make(name), finetune, 0)
    found = gradients(make(name), finetune, chunk, checkpointing=checkpointing)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5 * max(scale, 1.0))


class Counted(nn.Module):
    """A layer that knows how many of its outputs are alive, at most, and how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(6, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 4))
        self.alive = weakref.WeakSet[Any]()
        self.most = self.runs = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        hidden = self.layer[:2](rows)
        self.alive.add(hidden)
        self.most = max(self.most, sum(map(len, self.alive)))
        found: torch.Tensor = self.layer[2:](hidden)
        return found


def test_activations_of_one_chunk_are_alive_at_a_time() -> None:
    rows = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    most = {}
    for size in (0, 12, 3):
        counted = Counted()
        encode_in_chunks(counted, rows, size).logsumexp(0).sum().backward()  # type: ignore[no-untyped-call]  # torch's
        most[size] = counted.most
        assert counted.runs == (2 * len(rows) // size if size else 1)
    assert most == {0: 12, 12: 12, 3: 3}


def test_dropout_of_a_chunk_is_the_same_when_it_is_encoded_again() -> None:
    rows = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        counted = Counted()
        parts = [rows[:5], rows[5:10], rows[10:]]
        if again:
            encoded = encode_in_chunks(counted, rows, 5)
            torch.randn(3)  # the loss may draw, too
        else:
            encoded = torch.cat([counted(part) for part in parts])
        encoded.logsumexp(0).sum().backward()  # type: ignore[no-untyped-call]  # torch's
        found.append([encoded.detach(), *(p.grad for p in counted.parameters())])
    for one, other in zip(*found, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_an_encoder_that_does_not_train_is_not_encoded_again(new_encoder: MakeEncoder) -> None:
    calls = {"visual": 0, "transformer": 0}

    def count(name: str) -> Callable[..., None]:
        def add(*_: object) -> None:
            calls[name] += 1

        return add

    encoder = new_encoder()
    for name in calls:
        getattr(encoder.clip, name).register_forward_pre_hook(count(name))
    gradients(encoder, "text", 2)
    assert calls == {"visual": 4, "transformer": 8}


def test_evaluation_in_chunks_needs_no_gradient(new_encoder: MakeEncoder) -> None:
    encoder = new_encoder()
    whole, chunked = SumOfFeatures(encoder), SumOfFeatures(encoder, 3)
    with torch.inference_mode():
        for one, other in zip(whole(*batch(encoder)), chunked(*batch(encoder)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
