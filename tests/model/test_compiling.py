"""What torch.compile changes: nothing but the time, and once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._functorch._aot_autograd.utils import make_boxed_func

from raycd.errors import ConfigError
from raycd.model import compiling, lora
from raycd.model.compiling import Compilation, encode_compiled, once, repays
from raycd.model.encoder import Encoder
from raycd.train.finetune import SumOfFeatures

MakeEncoder = Callable[[], Encoder]


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Return a backend that runs what it is given as it is, and counts."""
    torch.compiler.reset()
    found = CompileCounter()
    monkeypatch.setattr(compiling, "BACKEND", found)
    return found


def broken(*args: object) -> None:
    raise RuntimeError("no compiler")


def test_only_the_largest_batches_run_compiled_and_it_is_compiled_once(
    counter: CompileCounter,
) -> None:
    layer = nn.Linear(3, 2)
    function = once(layer.forward, must=True, trains=True)
    for rows in (8, 8, 5, 8, 1):
        given = torch.randn(rows, 3)
        assert torch.equal(function(given), layer(given))
    assert counter.frame_count == 1


@pytest.mark.parametrize("trains", [True, False])
def test_what_trains_is_compiled_for_training_whoever_calls_it_first(
    monkeypatch: pytest.MonkeyPatch, trains: bool
) -> None:
    torch.compiler.reset()
    ran: list[bool] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        def run(*given: torch.Tensor) -> object:
            ran.append(torch.is_inference_mode_enabled())
            return graph.forward(*given)

        return run

    monkeypatch.setattr(compiling, "BACKEND", backend)
    layer = nn.Linear(3, 2)
    function = once(layer.forward, must=True, trains=trains)
    for rows, judges in ((20, trains), (8, not trains), (20, trains), (8, not trains)):
        with torch.inference_mode(judges):
            function(torch.ones(rows, 3))
    assert ran == [not trains] * 2


def test_gradients_of_a_compiled_encoder_are_its_own_and_its_names_too(
    new_encoder: MakeEncoder, counter: CompileCounter
) -> None:
    encoder, names = new_encoder(), list(new_encoder().state_dict())
    encoder.trainable("both", grad_checkpointing=True)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8, generator=generator)
    tokens = encoder.tokenize(["is red", "is blue", "has sleeves"])

    def gradients() -> list[torch.Tensor]:
        encoder.zero_grad()
        query, target = SumOfFeatures(encoder)(pixels, tokens)
        (query * target).sum().backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    exact = gradients()
    encode_compiled(encoder, must=True, trains=True)
    assert (
        vars(encode_compiled(encoder, must=True, trains=True))["encode_images"]
        is encoder.encode_images
    )
    for one, other in zip(gradients(), exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert counter.frame_count > 0
    assert list(encoder.state_dict()) == names
    again = counter.frame_count
    gradients()
    assert counter.frame_count == again


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [0, 2])
def test_adapted_encoders_are_compiled_too_and_what_is_frozen_stays_as_it_is(
    new_encoder: MakeEncoder, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    torch.compiler.reset()
    ran = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiling, "BACKEND", ran)
    pixels = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8)
    found = []
    for compiles in (False, True):
        encoder = new_encoder()
        encoder.trainable("none")
        lora.adapt(encoder, rank=2, alpha=4, seed=0)
        if compiles:
            encode_compiled(encoder, must=True, trains=True)
        for _ in range(2):
            encoder.zero_grad()
            tokens = encoder.tokenize(["is red", "is blue", "has sleeves"])
            query, target = SumOfFeatures(encoder, chunk)(pixels, tokens)
            (query * target).sum().backward()
        named = list(encoder.clip.named_parameters())
        found.append([(name, p.grad, p.detach()) for name, p in named])
    assert ran.frame_count > 0
    for (name, *one), (_, *other) in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_where_it_cannot_be_compiled_it_runs_as_it_is_or_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(compiling, "BACKEND", broken)
    layer, given = nn.Linear(3, 2), torch.ones(4, 3)
    function = once(layer.forward, must=False, trains=True)
    for _ in range(2):
        assert torch.equal(function(given), layer(given))
    assert capsys.readouterr().err.count("it runs uncompiled") == 1
    with pytest.raises(ConfigError, match=r"cannot be compiled here(.|\n)*no compiler"):
        once(nn.Linear(3, 2).forward, must=True, trains=True)(given)


@pytest.mark.parametrize("must", [True, False])
def test_a_backward_pass_that_cannot_be_compiled_is_known_before_it_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], must: bool
) -> None:
    def forward(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        boxed: Callable[..., object] = make_boxed_func(graph.forward)
        return boxed

    torch.compiler.reset()
    backend = aot_autograd(fw_compiler=forward, bw_compiler=broken)
    monkeypatch.setattr(compiling, "BACKEND", backend)
    layer, given = nn.Linear(3, 2), torch.ones(4, 3)
    function = once(layer.forward, must, trains=True)
    if must:
        with pytest.raises(ConfigError, match=r"cannot be compiled here(.|\n)*no compiler"):
            function(given)
        return
    for _ in range(2):
        [gradient] = torch.autograd.grad(function(given).sum(), [layer.weight])
        assert torch.equal(gradient, torch.full((2, 3), 4.0))
    assert capsys.readouterr().err.count("it runs uncompiled") == 1


def test_a_kernel_that_asks_too_much_of_a_card_ends_no_training_but_want_of_memory_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raised: list[Exception] = [RuntimeError("out of resource: shared memory")]

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        def run(*given: torch.Tensor) -> object:
            raise raised[0]

        return run

    monkeypatch.setattr(compiling, "BACKEND", backend)
    layer, given = nn.Linear(3, 2), torch.ones(4, 3)
    torch.compiler.reset()
    assert torch.equal(once(layer.forward, must=False, trains=True)(given), layer(given))
    assert "it runs uncompiled: " in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="out of resource"):
        once(layer.forward, must=True, trains=True)(given)
    raised[0] = torch.OutOfMemoryError("too large")
    with pytest.raises(torch.OutOfMemoryError):
        once(layer.forward, must=False, trains=True)(given)


def test_auto_compiles_a_training_on_a_gpu_that_is_long_enough_and_nothing_on_a_cpu() -> None:
    asked: list[bool] = []
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not Compilation(asked.append, "auto", cpu).undecided
    assert not Compilation(asked.append, False, gpu).undecided
    assert asked == []
    assert not Compilation(asked.append, True, cpu).undecided
    assert asked == [True]
    for left, wanted in ((1000, [True]), (5000, [True, False])):
        decision = Compilation(asked.append, "auto", gpu)
        undecided = [decision.undecided]
        decision.consider(0.17, left)  # RN50x4 with 64 triplets, without
        assert [*undecided, decision.undecided] == [True, False]
        assert asked == wanted
    assert [repays(seconds) for seconds in (300, 400)] == [False, True]
