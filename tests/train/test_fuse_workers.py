"""Stage 2 with two workers takes the steps of one, whatever the head's loss."""

from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from raycd.config import Config
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.captions import training_texts
from raycd.data.schema import PSEUDO_TRIPLET
from raycd.features import Features, map_cache
from raycd.features.map_cache import Extras
from raycd.model import compiling, fusion
from raycd.train.fuse import Fuse, new_head
from raycd.train.loop import Loop, Schedule
from raycd.train.task import Silence
from tests.two_workers import run_two

D, IMAGES, TRIPLETS = 8, 20, 16
POOLED = ["clip_cd", "combiner", "composeae", "dcnet", "tirg"]
TRAINED = [*POOLED, "clvc_net", "cosmo", "datir", "hffca", "sac", "val"]
SHAPES = {"map": [4, 2, 2], "middle": [4, 3, 3], "tokens": [7, 5]}


class Plain(Fuse):
    """Stage 2 by gradient descent: Adam makes steps of what is 0 but for rounding."""

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.module.parameters(), lr=1.0)


def task(head: str, compile: bool = False) -> Fuse:
    """Return a task whose batches of eight are whole, and where some triplets share a target."""
    ids, builder = [f"i{n}" for n in range(IMAGES)], DatasetBuilder()
    builder.add_gallery("dress", "train", ids, source="x")
    for n in range(TRIPLETS):
        row = TripletRow(f"t{n}", "dress", "train", ids[n], ids[1 + n // 2], [f"is {n}", "long"])
        builder.add_triplet(row, where="here")
    dataset = builder.build({})
    texts = {
        text: None
        for row in dataset.triplets["captions"].to_pylist()
        for text in training_texts(row)
    }
    generator = torch.Generator().manual_seed(0)
    small = {"bilinear_dim": 2, "projection_dim": 8, "hidden_dim": 8, "select_on": "last"}
    config = Config.model_validate(
        {"stage2": {"head": head, "dropout": 0.0, "logit_scale": 10.0, "compile": compile, **small}}
    )
    extras = cached(fusion.head_class(head).needs, {"tokens": list(texts)}, ids)
    return Plain(
        new_head(config, D, extras.shapes())[0],
        dataset,
        PSEUDO_TRIPLET.empty_table(),
        Features.of(ids, 3 * torch.randn(IMAGES, D, generator=generator)),
        Features.of(list(texts), torch.randn(len(texts), D, generator=generator)),
        config,
        extras=extras,
    )


def cached(needs: Collection[str], keys: Mapping[str, list[str]], ids: list[str]) -> Extras:
    """Return caches of random values; an open cache outlives its files."""
    rng, caches = np.random.default_rng(0), {}
    with TemporaryDirectory() as folder:
        for need in sorted(needs):
            path, ragged = Path(folder) / need, need == "tokens"
            writer = map_cache.CacheWriter(path, need, SHAPES[need], ragged=ragged)
            for key in keys.get(need, ids):
                shape = [3 + len(key) % 4, 5] if ragged else SHAPES[need]
                writer.add(key, rng.normal(size=shape).astype(np.float16))
            writer.close()
            caches[need] = map_cache.read(path)
    return Extras(caches)


def train(head: str, compile: bool = False, batch_size: int = 8) -> dict[str, Any]:
    made, schedule = task(head, compile), Schedule(3, batch_size, 1e-3, seed=0)
    loop = Loop(made, schedule, bar=lambda total, start: Silence())
    history = loop.run()
    return {"losses": [entry["loss"] for entry in history], "weights": made.head.state_dict()}


def worker(number: int, folder: str) -> None:
    found = {name: train(name) for name in TRAINED}
    compiling.BACKEND = "aot_eager"  # this process is the test's own
    found["compiled"] = train("clip_cd", compile=True)
    torch.save(found, Path(folder) / f"{number}.pt")


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("workers")
    run_two(worker, str(folder))
    return [torch.load(folder / f"{number}.pt") for number in range(2)]


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head", [*TRAINED, "compiled"])
def test_two_workers_train_the_head_that_one_trains(
    two_workers: list[dict[str, Any]], head: str
) -> None:
    alone = train("clip_cd" if head == "compiled" else head)
    for found in two_workers:
        assert_same(found[head], alone)


def test_a_stage_is_compiled_once_and_trains_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    compiled = train("clip_cd", compile=True, batch_size=6)  # the last batch of an epoch has four
    assert counter.frame_count == 1
    assert_same(compiled, train("clip_cd", batch_size=6))


# GeM cuts what is negative and VAL's attention starts at 0: in these tiny heads, steps of plain
# gradient descent leave some of it so (tests/model/test_map_heads.py has all of their gradients).
@pytest.mark.parametrize("head", [head for head in TRAINED if head not in ("clvc_net", "val")])
def test_training_changes_every_weight(head: str) -> None:
    fresh = task(head).head.state_dict()
    trained = train(head)["weights"]
    same = [name for name, value in fresh.items() if torch.equal(value, trained[name])]
    # A batch norm behind the pooling subtracts what the convolution adds.
    assert set(same) <= {"conv.0.bias"}


def test_heads_with_weights_are_all_tried() -> None:
    of_triplets = [name for name in fusion.names() if not fusion.head_class(name).on_titles]
    trained = {name for name in of_triplets if list(_head(name).parameters())}
    assert trained == set(TRAINED)


def _head(name: str) -> fusion.Head:
    return fusion.create(fusion.HeadConfig(name, D, 2, 8, 8, extra=SHAPES))
