import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from raycd.errors import WeightsError
from raycd.train import checkpoint
from raycd.train.checkpoint import HISTORY, MID_EPOCH, OPTIMIZER, WEIGHTS, TrainingState
from raycd.train.mid_epoch import MidEpoch

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "adam": lambda module: torch.optim.Adam(module.parameters(), lr=0.1),
    "fused adamw": lambda module: torch.optim.AdamW(module.parameters(), lr=0.1, fused=True),
}
ENTRIES = [{"epoch": 0, "loss": 0.1 + 0.2}, {"epoch": 1, "loss": 1 / 3}]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    module(rows).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_from_a_checkpoint_bit_by_bit(kind: str, tmp_path: Path) -> None:
    module = network()
    optimizer = OPTIMIZERS[kind](module)
    for seed in range(3):
        step(module, optimizer, seed)
    TrainingState.of(module, optimizer, ENTRIES).write(tmp_path)
    other = network(seed=1)
    restored = OPTIMIZERS[kind](other)
    assert TrainingState.read(tmp_path).history == ENTRIES
    TrainingState.read(tmp_path).fill(other, restored)
    for number, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            assert torch.equal(restored.state_dict()["state"][number][name], value)
    for seed in range(3, 6):
        step(module, optimizer, seed)
        step(other, restored, seed)
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_moments_are_laid_out_as_their_parameters_for_fused_optimizers_mix_them_up_otherwise(
    tmp_path: Path,
) -> None:
    def convolution() -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)

    def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        pixels = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
        for _ in range(steps):
            optimizer.zero_grad()
            module(pixels).square().sum().backward()
            optimizer.step()

    module, other = convolution(), convolution()
    optimizer, restored = (OPTIMIZERS["fused adamw"](one) for one in (module, other))
    train(module, optimizer, 3)
    TrainingState.of(module, optimizer, []).write(tmp_path)
    TrainingState.read(tmp_path).fill(other, restored)
    train(module, optimizer, 3)
    train(other, restored, 3)
    assert torch.equal(module.state_dict()["weight"], other.state_dict()["weight"])


def test_a_training_on_a_cpu_waits_for_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    TrainingState.of(network(), OPTIMIZERS["adam"](network()), [])
    assert waited == []


class Copies(TorchFunctionMode):
    """What is copied to CPUs inside of the block, and what is done with the copies."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[torch.Tensor] = []
        self.used: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(given is copy for given in args for copy in self.made):
            self.used.append(func.__name__)
        found = func(*args, **(kwargs or {}))
        if func is torch.Tensor.to:
            self.made.append(found)
        return found


def test_copies_from_a_gpu_are_in_order_without_being_read_before_they_are_there() -> None:
    module = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    with Copies() as copies:
        state = TrainingState.of(module, OPTIMIZERS["fused adamw"](module), [])
    assert len(copies.made) == 2
    assert copies.used == []
    assert state.weights["weight"].is_contiguous()
    assert torch.equal(state.weights["weight"], module.weight)


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_what_was_filled_keeps_no_file_of_the_checkpoint_mapped(tmp_path: Path) -> None:
    module, other = network(), network(seed=1)
    optimizer, restored = (OPTIMIZERS["adam"](one) for one in (module, other))
    step(module, optimizer, 0)
    mid_epoch = MidEpoch.gathered([torch.ones(2)], 1.0)
    TrainingState.of(module, optimizer, ENTRIES, mid_epoch).write(tmp_path)
    state = TrainingState.read(tmp_path)
    assert str(tmp_path / WEIGHTS) in Path("/proc/self/maps").read_text()
    state.fill(other, restored)
    kept = state.mid_epoch
    del state
    assert kept is not None
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"cpu.0", b"cpu.8"),  # a worker that there was not
        (b"cpu.0", b"cpu.x"),
        (b"cpu.0", b"cqu.0"),
        (b'"seconds"', b'"sfconds"'),
        (b'"dtype":"U8"', b'"dtype":"I8"'),
    ],
)
def test_a_damaged_key_of_the_place_inside_of_an_epoch_is_a_damaged_checkpoint(
    old: bytes, new: bytes, tmp_path: Path
) -> None:
    module = network()
    mid_epoch = MidEpoch.gathered([torch.ones(2)], 1.0)
    TrainingState.of(module, OPTIMIZERS["adam"](module), [], mid_epoch).write(tmp_path)
    data = (tmp_path / MID_EPOCH).read_bytes()
    assert old in data
    (tmp_path / MID_EPOCH).write_bytes(data.replace(old, new, 1))
    with pytest.raises(WeightsError, match="cannot be read"):
        TrainingState.read(tmp_path)


def test_parameters_that_do_not_train_have_no_state(tmp_path: Path) -> None:
    module = network()
    next(module.children()).requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad])
    step(module, optimizer, 0)
    TrainingState.of(module, optimizer, []).write(tmp_path)
    assert len(load_file(tmp_path / OPTIMIZER)) == 4 * 3
    TrainingState.read(tmp_path).fill(module, optimizer)


def test_the_learning_rate_is_not_the_checkpoints_affair(tmp_path: Path) -> None:
    module = network()
    TrainingState.of(module, torch.optim.Adam(module.parameters(), lr=0.5), []).write(tmp_path)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.25)
    TrainingState.read(tmp_path).fill(module, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.25


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no optimizer": lambda folder: (folder / OPTIMIZER).unlink(),
    "no history": lambda folder: (folder / HISTORY).unlink(),
    "truncated weights": lambda folder: truncate(folder / WEIGHTS),
    "truncated optimizer": lambda folder: truncate(folder / OPTIMIZER),
    "malformed history": lambda folder: truncate(folder / HISTORY),
    "weights of another model": lambda folder: save_file({"x": torch.zeros(1)}, folder / WEIGHTS),
    "strange optimizer": lambda folder: save_file({"x": torch.zeros(1)}, folder / OPTIMIZER),
    "truncated middle of an epoch": lambda folder: truncate(folder / MID_EPOCH),
    "history of no epochs": lambda folder: (folder / HISTORY).write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_checkpoint_is_a_weights_error(damage: str, tmp_path: Path) -> None:
    module = network()
    optimizer = OPTIMIZERS["adam"](module)
    step(module, optimizer, 0)
    TrainingState.of(module, optimizer, ENTRIES, MidEpoch.gathered([torch.ones(())], 1.0)).write(
        tmp_path
    )
    DAMAGES[damage](tmp_path)
    with pytest.raises(
        WeightsError, match=r"the checkpoint .* cannot be read(.|\n)*delete it, then run"
    ):
        TrainingState.read(tmp_path).fill(module, optimizer)


def test_only_the_weights_may_be_asked_for(tmp_path: Path) -> None:
    module, other = network(), network(seed=1)
    TrainingState.of(module, OPTIMIZERS["adam"](module), ENTRIES).write(tmp_path)
    (tmp_path / OPTIMIZER).unlink()
    checkpoint.load_weights(tmp_path, other)
    assert torch.equal(other.state_dict()["0.weight"], module.state_dict()["0.weight"])
