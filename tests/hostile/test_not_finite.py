"""Losses, weights and features that are not finite end the work with a message that says where."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn

from raycd import bundle, program
from raycd.config import Config
from raycd.durable import sha256
from raycd.errors import TrainingError, WeightsError
from raycd.model import encoder, fusion
from raycd.model.embed import EmbedTexts, EncodeImages
from raycd.model.fusion import HeadConfig
from raycd.runtime.train import training
from raycd.train.loop import LOOK_EVERY, Loop, Schedule
from raycd.train.task import Silence
from tests.two_workers import run_two


def make_toy(inputs: Mapping[str, Any], config: Config, device: torch.device) -> Any:
    """Return a linear map whose loss or weights turn NaN in a step; it is pickled by value."""

    class Toy:
        name = inputs.get("name", "stage 2")

        def __init__(self) -> None:
            torch.manual_seed(0)
            self.module: nn.Module = nn.Linear(4, 2)
            self.steps = 0

        def optimizer(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.module.parameters())

        def count(self, epoch: int) -> int:
            return 120

        def kind(self, epoch: int) -> str:
            return "original"

        def batches(self, epoch: int, rows: Sequence[Any]) -> Iterator[torch.Tensor]:
            yield from (torch.from_numpy(own) for own in rows)

        def loss(self, module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            worker = distributed.get_rank() if distributed.is_initialized() else 0
            spoilt = self.steps == inputs["step"] and worker == inputs.get("worker", 0)
            if spoilt and inputs.get("weights"):  # the last update of an epoch: no loss shows it
                self.module.register_buffer("spoilt", torch.tensor(float("inf")))
            factor = float("nan") if spoilt and not inputs.get("weights") else 1.0
            loss: torch.Tensor = (
                module(batch[:, None].float().expand(-1, 4) / 120).square().mean() * factor
            )
            return loss

        def select(self) -> float | None:
            return None

    return Toy()


SCHEDULE = Schedule(epochs=3, batch_size=4, lr=0.001, seed=0)  # 30 steps an epoch


def trained(**inputs: Any) -> tuple[list[int], str]:
    """Return the reported epochs, and the message at the end."""
    task = make_toy(inputs, Config(), torch.device("cpu"))
    loop = Loop(task, SCHEDULE, bar=lambda total, start: Silence())
    reported: list[int] = []
    with pytest.raises(TrainingError) as caught:
        loop.run(lambda result: reported.append(result.epoch))
    assert task.steps < inputs["step"] + LOOK_EVERY
    return reported, str(caught.value)


@pytest.mark.parametrize(
    ("step", "epochs", "where"),
    [(1, [], "step 1 of epoch 1"), (4, [], "step 4 of epoch 1"), (60, [0], "step 30 of epoch 2")],
)
def test_a_loss_of_nan_ends_the_stage_within_some_steps(
    step: int, epochs: list[int], where: str
) -> None:
    reported, message = trained(step=step)
    assert reported == epochs
    assert message.startswith("stage 2 has diverged")
    assert f"loss nan in {where}, at a learning rate of 0.001" in message
    assert "lower stage2.lr, or set stage2.precision fp32" in message


def test_a_precision_is_not_advised_where_there_is_no_such_setting() -> None:
    _, message = trained(step=1, name="pre-train")
    assert message.endswith("lower pretrain.lr")


def test_weights_that_are_not_finite_end_the_stage_before_their_epoch_is_kept() -> None:
    reported, message = trained(step=60, weights=True)
    assert reported == [0]
    assert "weights that are not finite after epoch 2" in message


def two(number: int, folder: str) -> None:
    loop = Loop(make_toy({"step": 7, "worker": 1}, Config(), torch.device("cpu")), SCHEDULE)
    try:
        loop.run()
    except TrainingError as error:
        Path(folder, str(number)).write_text(str(error))


@pytest.mark.slow
def test_all_workers_end_where_the_loss_of_one_is_nan(tmp_path: Path) -> None:
    run_two(two, str(tmp_path))
    first, second = ((tmp_path / str(number)).read_text() for number in range(2))
    assert first == second
    assert "loss nan in step 7 of epoch 1" in first


@pytest.mark.slow
def test_ray_train_does_not_try_again_and_tells_the_user(ray_cluster: None, tmp_path: Path) -> None:
    settings = Config.model_validate({"compute": {"train_workers": 1, "threads": 1}})
    with pytest.raises(TrainingError) as caught:
        training.train(
            "toy", make_toy, {"step": 1}, SCHEDULE, settings, storage=str(tmp_path), name="toy"
        )
    message = program._users_message(caught.value, str(tmp_path))
    assert message is not None
    assert "loss nan in step 1 of epoch 1" in message


def spoil(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name, value in tensors.items() if value.is_floating_point())
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path)


def seal(folder: Path) -> None:
    """Make the hashes in a bundle's manifest those of its files, as a broken exporter would."""
    manifest = bundle.read_manifest(folder)
    files = {name: sha256(folder / name) for name in manifest.files}
    manifest = manifest.model_copy(update={"files": files})
    manifest = manifest.model_copy(update={"digest": manifest.own_digest()})
    (folder / bundle.MANIFEST).write_text(manifest.model_dump_json())


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("encoder/open_clip_model.safetensors", "encoder"),
        ("head/head.safetensors", "fusion head"),
        ("index.safetensors", "index"),
    ],
)
def test_a_bundle_with_numbers_that_are_not_finite_is_not_loaded(
    tiny_bundle: Any, tmp_path: Path, name: str, part: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))
    path = folder / name
    if name == "index.safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            facts, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        tensors["lengths"][0] = float("inf")
        save_file(tensors, path, metadata=facts)
    else:
        spoil(path)
    seal(folder)
    with pytest.raises(WeightsError, match="not finite") as caught:
        bundle.load(folder)
    assert part in str(caught.value)


@pytest.mark.parametrize("part", ["encoder", "head", "gallery"])
def test_no_bundle_is_written_with_numbers_that_are_not_finite(
    tiny_bundle: Any, tmp_path: Path, part: str
) -> None:
    whole = bundle.load(tiny_bundle.folder)
    gallery = bundle.read_gallery(tiny_bundle.folder)
    if part == "gallery":
        features = bundle.gallery_features(gallery).copy()
        features[3, 1] = np.nan
        ids, categories, paths = (
            gallery[name].to_pylist() for name in ("image_id", "categories", "path")
        )
        fingerprint = whole.encoder.fingerprint()
        gallery = bundle.gallery_table(ids, categories, paths, features, fingerprint)
    else:
        module = whole.encoder.clip if part == "encoder" else whole.head
        with torch.no_grad():
            next(module.parameters()).view(-1)[0] = float("inf")
        gallery = gallery.replace_schema_metadata(
            {b"encoder": whole.encoder.fingerprint().encode()}
        )
    with pytest.raises(WeightsError, match="not finite"):
        bundle.write(
            tmp_path / "bundle",
            whole.encoder,
            whole.head,
            whole.head_config,
            gallery,
            whole.config,
            {},
        )
    assert not (tmp_path / "bundle").exists()


def test_weights_from_a_file_are_finite(new_encoder: Any, tmp_path: Path) -> None:
    new_encoder().save(tmp_path / "encoder")
    spoil(tmp_path / "encoder" / encoder.WEIGHTS)
    with pytest.raises(WeightsError, match="not finite"):
        encoder.load_saved(tmp_path / "encoder")
    settings = HeadConfig("clip_cd", 16, bilinear_dim=4, projection_dim=8, hidden_dim=8)
    fusion.save(fusion.create(settings), settings, tmp_path / "head")
    spoil(tmp_path / "head" / fusion.registry.WEIGHTS)
    with pytest.raises(WeightsError, match="run stage 2 again"):
        fusion.load(tmp_path / "head")


def test_features_that_are_not_finite_name_the_image_or_the_text(new_encoder: Any) -> None:
    broken = new_encoder().eval()
    with torch.no_grad():
        for parameter in broken.clip.parameters():
            parameter.mul_(float("inf"))
    side, _ = broken.preprocess.size
    pixels = np.full((2, side, side, 3), 100, np.uint8)
    batch = {"key": ["shoe", "hat"], "status": ["not_an_image", "ok"], "pixels": pixels}
    with pytest.raises(WeightsError, match="not finite") as caught:
        EncodeImages(broken)(batch)
    assert "'hat'" in str(caught.value)
    with pytest.raises(WeightsError, match="'is blue'"):
        EmbedTexts(broken)({"key": ["is blue"]})
