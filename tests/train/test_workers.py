"""Any number of workers takes the steps of one, on batches that they cannot share evenly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from raycd import mine
from raycd.config import Config, EncoderConfig, MineConfig
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.captions import training_texts
from raycd.data.schema import PSEUDO_TRIPLET, Dataset
from raycd.features import Features
from raycd.model import encoder as encoders
from raycd.model.encoder import Encoder
from raycd.train.adapt import Adapt
from raycd.train.finetune import FineTune
from raycd.train.fuse import Fuse, new_head
from raycd.train.loop import Loop, Schedule
from raycd.train.task import Silence, Task
from tests.two_workers import run_workers

D, IMAGES, TRIPLETS, BATCH = 8, 16, 21, 8  # batches of 8, 8 and 5
STAGE1: dict[str, dict[str, Any]] = {
    "both": {},
    "frozen images": {"finetune": "text", "mask_equal_targets": False},
    "frozen texts": {"finetune": "image"},
    "checkpointing": {"grad_checkpointing": True},
    "chunks": {"chunk": 2},
    "adapters": {"finetune": "lora", "chunk": 3, "grad_checkpointing": True},
    "chunks, frozen, checkpointing": {"chunk": 3, "finetune": "image", "grad_checkpointing": True},
}
STAGE2: dict[str, dict[str, Any]] = {
    "clip_cd": {"pseudo_weight": "score"},
    "combiner": {"soft_targets": 0.2, "clip_norm": 0.05, "hard_negatives": 3},
    "tirg": {},  # has batch norms
    # Compares blocks of a batch. Steps as long as the weights themselves would multiply rounding
    "dcnet": {"clip_norm": 1.0},
}


class Plain:
    """Gradient descent: Adam makes steps of what is 0 but for float32's rounding."""

    def optimizer(self: Any) -> torch.optim.Optimizer:
        trained = [p for p in self.module.parameters() if p.requires_grad]
        return torch.optim.SGD(trained, lr=1.0)


class PlainFineTune(Plain, FineTune): ...


class PlainAdapt(Plain, Adapt): ...


class PlainFuse(Plain, Fuse): ...


def dataset() -> Dataset:
    """Return triplets of which two or three each look for the same target."""
    ids, builder = [f"i{n}" for n in range(IMAGES)], DatasetBuilder()
    builder.add_gallery("dress", "train", ids, source="x")
    for n in range(TRIPLETS):
        own = TripletRow(
            *(f"t{n}", "dress", "train", ids[n % IMAGES], ids[(n * 5 + 1) % 9]),
            [f"is {n}", "long"],
        )
        builder.add_triplet(own, where="here")
    return builder.build({})


def pseudo(rows: Dataset) -> pa.Table:
    """Return thirteen pseudo triplets, of which some share a target with each other."""
    source = rows.triplets.to_pylist()[:13]
    made = [
        {"triplet_id": row["triplet_id"], "category": "dress", "reference": row["reference"]}
        | {"target": f"i{9 + n % 4}", "side": "target", "replaced": row["target"]}
        | {"similarity": 0.9, "rank": 0, "score": 0.5 + n / 30, "encoder": "abc"}
        for n, row in enumerate(source)
    ]
    return pa.Table.from_pylist(made, schema=PSEUDO_TRIPLET)


def small_encoder(configs: str) -> Encoder:
    torch.manual_seed(0)
    encoder = encoders.create(EncoderConfig(name="raycd-tiny", pretrained="", configs=configs))
    encoder.train()
    pixels = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():  # untrained statistics would tell no image from another
        for _ in range(4):
            encoder.encode_images(pixels)
    return encoder


def adapt(folder: Path, configs: str) -> Adapt:
    """Return the adaptation to titles, some of which several images have."""
    texts = {f"i{n}": [f"title {n % 9}", f"{n % 4}"] for n in range(IMAGES)}
    paths = {key: str(folder / f"{key}.png") for key in texts}
    config = Config.model_validate({"adapt": {"logit_scale": 5.0, "chunk": 3}})
    return PlainAdapt(small_encoder(configs), texts, paths, config)


def finetune(
    settings: Mapping[str, Any], folder: Path, configs: str, kind: type[FineTune] = PlainFineTune
) -> FineTune:
    encoder = small_encoder(configs)
    stage1 = {"select_on": "last", "logit_scale": 5.0, **settings}
    paths = {f"i{n}": str(folder / f"i{n}.png") for n in range(IMAGES)}
    return kind(encoder, dataset(), paths, Config.model_validate({"stage1": stage1}))


def fuse(head: str, settings: Mapping[str, Any], kind: type[Fuse] = PlainFuse) -> Fuse:
    data, generator = dataset(), torch.Generator().manual_seed(0)
    texts = {text: None for row in data.triplets["captions"].to_pylist() for text in _four(row)}
    small = {"bilinear_dim": 2, "projection_dim": 8, "hidden_dim": 8, "select_on": "last", "k": 1}
    stage2 = {"head": head, "dropout": 0.0, "logit_scale": 5.0, **small, **settings}
    config = Config.model_validate({"stage2": stage2})
    ids, image_ND = [f"i{n}" for n in range(IMAGES)], torch.randn(IMAGES, D, generator=generator)
    return kind(
        *(new_head(config, D)[0], data, pseudo(data)),
        Features.of(ids, image_ND),
        Features.of(list(texts), torch.randn(len(texts), D, generator=generator)),
        config,
        neighbours=mined(data, ids, image_ND) if config.stage2.hard_negatives else None,
    )


def mined(data: Dataset, ids: list[str], image_ND: torch.Tensor) -> pa.Table:
    pools = mine.make_pools("all", data.gallery, mine.of_triplets(ids, data.triplets))
    loose = MineConfig(floor=-1.0, eps_low=-1.0, neighbours=6)
    return mine.find_neighbours(image_ND.numpy(), pools, loose)


def _four(captions: list[str]) -> list[str]:
    return list(training_texts(captions))


def trained(task: Task[Any], epochs: int, clip_norm: float = 0.0) -> dict[str, Any]:
    """Return what the steps of some epochs leave: losses, the last gradient, the weights."""
    schedule = Schedule(epochs, BATCH, 0.05, seed=0, clip_norm=clip_norm)
    loop = Loop(task, schedule, bar=lambda total, start: Silence())
    history = loop.run()
    names = ("loss", "gradient_norm", "gradient_norm_max")
    grads = {name: p.grad for name, p in task.module.named_parameters() if p.grad is not None}
    return {
        "history": [[entry[name] for name in names] for entry in history],
        "gradients": grads,
        # Of a sum of this size, what is left by rounding
        "size": 1.0 if clip_norm else max(1.0, history[-1]["gradient_norm"]),
        "weights": task.module.state_dict(),
    }


def all_of_them(folder: Path, configs: str) -> dict[str, Any]:
    made = {"adapt": trained(adapt(folder, configs), 1)}
    for name, settings in STAGE1.items():
        made[f"stage 1, {name}"] = trained(finetune(settings, folder, configs), 1)
    for head, settings in STAGE2.items():  # an epoch of originals, and one of pseudo triplets
        own = fuse(head, settings)
        made[f"stage 2, {head}"] = trained(own, 2, own.config.clip_norm)
    with in_double():
        made["double, stage 1"] = trained(finetune({"chunk": 2}, folder, configs), 1)
        made["double, stage 2"] = trained(fuse("tirg", {}), 2)
        # Whose epsilon is far above what rounding leaves here
        made["Adam, stage 1"] = trained(finetune({"chunk": 2}, folder, configs, FineTune), 1)
        made["Adam, stage 2"] = trained(fuse("tirg", {}, Fuse), 2)
    return made


@contextmanager
def in_double() -> Iterator[None]:
    """Compute all in double precision: what differs by rounding alone is then all but equal."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.double)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float)


def work(number: int, folder: str, configs: str) -> None:
    torch.save(all_of_them(Path(folder), configs), Path(folder) / f"{number}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, rng = tmp_path_factory.mktemp("workers"), np.random.default_rng(0)
    for n in range(IMAGES):
        pixels = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(made / f"i{n}.png")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_workers_have_losses_gradients_and_weights_of_one(
    folder: Path, tiny_configs: str, world: int
) -> None:
    alone = all_of_them(folder, tiny_configs)
    run_workers(world, work, str(folder), tiny_configs)
    for number in range(world):
        found = torch.load(folder / f"{number}.pt")
        assert found.keys() == alone.keys()
        for name, own in alone.items():
            near = {"double": 1e-11, "Adam": 1e-7}.get(name.partition(",")[0], 1e-5)
            for entry, expected in zip(found[name]["history"], own["history"], strict=True):
                assert entry == pytest.approx(expected, rel=near, abs=2 * near), name
            for part in ("gradients", "weights"):
                assert found[name][part].keys() == own[part].keys()
                size = own["size"] if part == "gradients" else 1.0
                for key, value in own[part].items():
                    torch.testing.assert_close(
                        found[name][part][key],
                        value,
                        rtol=near,
                        atol=near * size,
                        msg=partial(_at, f"{name}: {part} of {key}, worker {number}"),
                    )


def _at(place: str, said: str) -> str:
    return f"{place}: {said}"
