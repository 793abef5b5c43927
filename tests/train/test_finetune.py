import dataclasses
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raycd.config import Config
from raycd.data.captions import training_texts
from raycd.data.demo.synthetic import write_demo_data
from raycd.data.read import read
from raycd.data.schema import TRIPLET, Dataset
from raycd.data.selection import hold_out
from raycd.evaluate import Mean, cached_query, evaluate
from raycd.features import Features
from raycd.model import lora
from raycd.model.encoder import Encoder
from raycd.model.fusion.sum import Sum
from raycd.train import checkpoint
from raycd.train.batches import epoch_batches
from raycd.train.finetune import FineTune, SumOfFeatures, parameters, prepare
from raycd.train.loop import Loop, Schedule
from raycd.train.task import Silence
from raycd.train.triplets import TripletBatch
from tests.train.waiting import DEVICES, asked_by_each_step

MakeEncoder = Callable[[], Encoder]
SMALL_DATA = {
    "format": "synthetic",
    "selection_fraction": 0.2,
    "synthetic": {
        "train_images": 25,
        "val_images": 30,
        "train_triplets": 24,
        "val_triplets": 5,
        "size": 32,
    },
}


def settings(**stage1: object) -> Config:
    return Config.model_validate(
        {
            "data": SMALL_DATA,
            "stage1": {"batch_size": 16, "lr": 1e-3, "logit_scale": 20.0, **stage1},
        }
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root, config = tmp_path_factory.mktemp("catalogue"), settings()
    write_demo_data(root, config.data.synthetic)
    return hold_out(read(config.data, str(root)), 0.2, seed=0)


@pytest.fixture(scope="module")
def paths(dataset: Dataset) -> dict[str, str]:
    return {row["image_id"]: row["path"] for row in dataset.images.to_pylist()}


@pytest.fixture
def task(new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str]) -> FineTune:
    return FineTune(new_encoder(), dataset, paths, settings())


def batches(task: FineTune, epoch: int) -> Iterator[TripletBatch]:
    return task.batches(epoch, epoch_batches(task.count(epoch), 16, seed=0, epoch=epoch))


def train(task: FineTune, epochs: int = 4, lr: float = 1e-3) -> list[dict[str, float]]:
    return Loop(task, Schedule(epochs, 16, lr, seed=0), bar=lambda total, start: Silence()).run()


def test_only_train_triplets_are_trained_on(task: FineTune, dataset: Dataset) -> None:
    assert task.count(0) == len(dataset.triplets_of("train"))
    assert 0 < len(dataset.triplets_of("selection")) < task.count(0) < 72
    assert {row["split"] for row in task.triplets} == {"train"}
    assert task.left_out == 0


def test_all_four_joins_of_the_captions_are_shown(task: FineTune) -> None:
    shown: dict[int, set[str]] = {}
    everything = np.arange(task.count(0))
    for epoch in range(30):
        (batch,) = task.batches(epoch, [everything])
        for row, tokens in enumerate(batch.tokens):
            shown.setdefault(row, set()).add(str(tokens.tolist()))
    for row, tokens in shown.items():
        texts = dict.fromkeys(training_texts(task.triplets[row]["captions"]))
        assert tokens == {str(line.tolist()) for line in task.encoder.tokenize(list(texts))}


def test_a_batch_holds_references_then_targets_and_numbers_the_targets(task: FineTune) -> None:
    rows = np.array([3, 0, 5])
    (batch,) = task.batches(0, [rows])
    wanted = [task.triplets[row] for row in rows]
    assert batch.pixels.shape == (6, 32, 32, 3)
    assert batch.pixels.dtype == torch.uint8
    for index, triplet in enumerate(wanted):
        assert torch.equal(batch.pixels[index], task.pixels.one(triplet["reference"]))
        assert torch.equal(batch.pixels[3 + index], task.pixels.one(triplet["target"]))
    ids = list(task.pixels.paths)
    assert [ids[number] for number in batch.targets] == [triplet["target"] for triplet in wanted]


def test_the_same_epoch_shows_the_same_batches_again(task: FineTune) -> None:
    def tokens(epoch: int) -> list[list[list[int]]]:
        return [batch.tokens.tolist() for batch in batches(task, epoch)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_triplets_of_missing_images_are_left_out_and_counted(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str]
) -> None:
    rows = dataset.triplets_of("train").to_pylist()
    gone = rows[0]["target"]
    touched = [row for row in rows if gone in (row["reference"], row["target"])]
    readable = {image_id: path for image_id, path in paths.items() if image_id != gone}
    task = FineTune(new_encoder(), dataset, readable, settings())
    assert task.left_out == len(touched) > 0
    assert task.count(0) == len(rows) - len(touched)
    assert [row["triplet_id"] for row in task.triplets] == [
        r["triplet_id"] for r in rows if r not in touched
    ]


def test_each_epoch_shows_one_of_the_right_targets_and_masks_them_all(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str]
) -> None:
    rows = dataset.triplets.to_pylist()
    own = next(row for row in rows if row["split"] == "train")
    gallery = dataset.gallery_ids(own["category"], "train")
    others = [i for i in gallery if i not in (own["reference"], own["target"])][:2]
    own["further_targets"] = [*others, "gone"]
    table = pa.Table.from_pylist(rows, schema=TRIPLET)
    several = dataclasses.replace(dataset, triplets=table)
    task = FineTune(new_encoder(), several, paths, settings())
    ids = list(task.pixels.paths)
    assert task.triplets[0]["triplet_id"] == own["triplet_id"]
    shown = set()
    for epoch in range(20):
        (batch,) = task.batches(epoch, [np.array([0, 1])])
        target = ids[batch.targets[0]]
        assert torch.equal(batch.pixels[2], task.pixels.one(target))
        assert ids[batch.targets[1]] == task.triplets[1]["target"]
        assert batch.right is not None
        assert {ids[n] for n in batch.right[0] if n >= 0} == {own["target"], *others}
        shown.add(target)
    assert shown == {own["target"], *others}


def test_what_travels_to_a_decoding_process_gives_the_same_batches(task: FineTune) -> None:
    [work] = task.reader.work([np.array([1, 4])], seed=0, epoch=0)
    one, two = task.reader[work], pickle.loads(pickle.dumps(task.reader))[work]
    assert torch.equal(one.pixels, two.pixels)
    assert torch.equal(one.tokens, two.tokens)


@pytest.mark.slow
def test_processes_that_decode_give_the_same_batches_and_stay_for_the_next_epoch(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str], task: FineTune
) -> None:
    other = FineTune(new_encoder(), dataset, paths, settings(loader_workers=2))
    own = psutil.Process()
    processes = []
    for epoch in range(2):
        for one, two in zip(batches(task, epoch), batches(other, epoch), strict=True):
            assert torch.equal(one.pixels, two.pixels)
            assert torch.equal(one.tokens, two.tokens)
            assert torch.equal(one.targets, two.targets)
        processes.append({child.pid for child in own.children()})
    assert processes[0] == processes[1]
    # They have filled the memory of this process, too: nothing is decoded again
    other.pixels.paths = {}
    assert len(other.pixels([row["target"] for row in other.triplets])) == other.count(0)


@pytest.mark.parametrize("device", DEVICES)
def test_steps_ask_the_device_for_nothing(
    new_encoder: MakeEncoder,
    dataset: Dataset,
    paths: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
) -> None:
    task = FineTune(new_encoder().to(device), dataset, paths, settings(loader_workers=0))
    read = list(task.batches(0, epoch_batches(task.count(0), 8, seed=0, epoch=0)))
    monkeypatch.setattr(task, "batches", lambda epoch, rows: iter(read))
    asked = asked_by_each_step(task, 8)
    assert len(asked) >= 4
    assert not any(asked)


def test_in_bf16_training_takes_nearly_the_same_way(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str]
) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        config = settings(precision=precision, select_on="last")
        history = train(FineTune(new_encoder(), dataset, paths, config), epochs=3)
        losses.append([entry["loss"] for entry in history])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_training_lowers_the_loss_and_keeps_batch_norm_statistics(task: FineTune) -> None:
    # Random weights tell images apart only once their batch norms have seen some
    task.encoder.train()
    with torch.no_grad():
        for _ in range(20):
            task.encoder.encode_images(task.pixels(list(task.pixels.paths)[:60]))
    task.encoder.trainable("both")
    before = {name: value.clone() for name, value in task.encoder.clip.named_buffers()}
    assert any(name.endswith("running_mean") for name in before)
    history = train(task, epochs=10)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    for name, value in task.encoder.clip.named_buffers():
        assert torch.equal(value, before[name]), name
    assert not task.encoder.training


@pytest.mark.parametrize("chunk", [0, 5])
def test_adapters_go_on_from_a_checkpoint_and_are_merged_into_what_was_evaluated(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str], tmp_path: Path, chunk: int
) -> None:
    config = settings(finetune="lora", lora_rank=2, chunk=chunk)
    whole, stopped, again = (FineTune(new_encoder(), dataset, paths, config) for _ in range(3))
    schedules = [Schedule(epochs, 16, 1e-2, seed=0) for epochs in (2, 1, 2)]
    expected = Loop(whole, schedules[0], bar=silent).run()
    first = Loop(stopped, schedules[1], bar=silent)
    first.run()
    first.state().write(tmp_path / "1")
    last = Loop(again, schedules[2], restore=tmp_path / "1", bar=silent)
    assert last.run()[1]["loss"] == pytest.approx(expected[1]["loss"], rel=1e-6)
    assert expected[1]["selection"] == last.history[1]["selection"]
    last.state().write(tmp_path / "2")

    plain = new_encoder()
    before, names = plain.fingerprint(), set(plain.clip.state_dict())
    adapters = prepare(plain, config.stage1, config.seed)
    counts = parameters("stage 1", plain)
    assert counts["trained"] < 0.1 * counts["frozen"]
    checkpoint.load_weights(tmp_path / "2", nn.ModuleDict({"encoder": plain}))
    lora.merge(adapters)
    pixels = whole.pixels(list(paths)[:4])
    with torch.inference_mode():
        adapted = again.encoder.encode_images(pixels)
        torch.testing.assert_close(plain.encode_images(pixels), adapted, rtol=1e-5, atol=1e-5)
        moved = new_encoder().encode_images(pixels) - adapted
    assert moved.abs().max() > 1e-3
    assert set(plain.clip.state_dict()) == names
    assert plain.fingerprint() != before


def silent(total: int, start: int) -> Silence:
    return Silence()


@pytest.mark.parametrize(("finetune", "frozen"), [("text", True), ("image", False)])
def test_the_encoder_that_does_not_train_stays_bit_equal(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str], finetune: str, frozen: bool
) -> None:
    task = FineTune(new_encoder(), dataset, paths, settings(finetune=finetune))
    before = {name: value.clone() for name, value in task.encoder.clip.state_dict().items()}
    train(task, epochs=1)
    after = task.encoder.clip.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed
    assert {name.startswith("visual.") for name in changed} == {not frozen}


def test_the_selection_metric_is_recall_on_the_split_that_was_asked_for(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str]
) -> None:
    for split in ("selection", "val"):
        task = FineTune(new_encoder(), dataset, paths, settings(select_on=split))
        found = task.select()
        assert found is not None
        assert 0 < found <= 1
        whole = [
            sum(r["category"] == c for r in dataset.triplets_of(split).to_pylist())
            for c in dataset.categories()
        ]
        assert (found * 3 * np.prod(whole)) == pytest.approx(
            round(found * 3 * np.prod(whole)), abs=1e-6
        )
    assert FineTune(new_encoder(), dataset, paths, settings(select_on="last")).select() is None


def test_selection_sees_what_training_has_changed(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str]
) -> None:
    task = FineTune(new_encoder(), dataset, paths, settings(select_on="val"))  # galleries of 30
    with torch.no_grad():
        for parameter in task.encoder.parameters():
            parameter.fill_(torch.nan)
    assert task.select() == 0.0


def test_queries_are_the_normalised_sum_of_unnormalised_features(new_encoder: MakeEncoder) -> None:
    encoder = new_encoder()
    pixels = torch.randint(
        0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    tokens = encoder.tokenize(["is red", "is blue"])
    with torch.inference_mode():
        query, target = SumOfFeatures(encoder)(pixels, tokens)
        total = encoder.encode_images(pixels[:2]) + encoder.encode_tokens(tokens)
        torch.testing.assert_close(query, total / total.norm(dim=-1, keepdim=True))
        torch.testing.assert_close(target, encoder.encode_images(pixels[2:]))


def test_further_targets_are_no_negatives_and_missing_ones_are_replaced(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str]
) -> None:
    rows = dataset.triplets_of("train").to_pylist()[:3]
    first, second, third = (row["target"] for row in rows)
    assert len({first, second, third}) == 3
    rows[0]["further_targets"] = [second]
    rows[2] |= {"target": "gone", "further_targets": [third]}
    data = dataclasses.replace(dataset, triplets=pa.Table.from_pylist(rows, schema=TRIPLET))
    task = FineTune(new_encoder(), data, paths, settings())
    assert (task.count(0), task.left_out) == (3, 0)
    drawn = set()
    for epoch in range(6):
        (batch,) = task.batches(epoch, [np.arange(3)])
        query, target = task.module(batch.pixels, batch.tokens)
        logits = 20 * query @ F.normalize(target, dim=-1).T
        logits[0, 1] = -torch.inf
        is_second = bool(batch.targets[0] == batch.targets[1])
        if is_second:
            logits[1, 0] = -torch.inf
        drawn.add(is_second)
        expected = F.cross_entropy(logits, torch.arange(3))
        torch.testing.assert_close(task.loss(task.module, batch), expected)
    assert drawn == {False, True}


@pytest.mark.parametrize("select_by", [["recall@10"], ["recall@1", "recall@20"]])
def test_epochs_are_chosen_by_the_mean_of_select_by(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str], select_by: list[str]
) -> None:
    task = FineTune(new_encoder(), dataset, paths, settings(select_on="val", select_by=select_by))
    ids = list(paths)
    with torch.inference_mode():
        images = Features.of(ids, task.encoder.encode_images(task.pixels(ids)))
        asked = list({row["text"]: None for row in dataset.queries("val")})
        texts = Features.of(asked, task.encoder.encode_tokens(task.encoder.tokenize(asked)))
    query = cached_query(Sum(), images, texts)
    found = evaluate(dataset, "val", images, query, ks=[1, 10, 20]).recalls["average"]
    assert task.select() == pytest.approx(sum(found[k] for k in select_by) / len(select_by))


def test_subsets_are_whole_where_epochs_are_chosen_on_what_is_held_out(
    new_encoder: MakeEncoder, dataset: Dataset, paths: dict[str, str]
) -> None:
    """The gallery of the selection split has its references and targets alone."""
    others = dataset.gallery_ids(dataset.categories()[0], "train")
    rows = [
        {**row, "subset": [row["target"], *others[:5]] if row["split"] == "selection" else None}
        for row in dataset.triplets.to_pylist()
    ]
    data = dataclasses.replace(dataset, triplets=pa.Table.from_pylist(rows, schema=TRIPLET))
    task = FineTune(new_encoder(), data, paths, settings(select_by=["recall_subset@1"]))
    ids = list(paths)
    with torch.inference_mode():
        images = Features.of(ids, task.encoder.encode_images(task.pixels(ids)))
        asked = list({row["text"]: None for row in data.queries("selection")})
        texts = Features.of(asked, task.encoder.encode_tokens(task.encoder.tokenize(asked)))
    found = evaluate(data, "selection", images, cached_query(Sum(), images, texts))
    expected = Mean(("recall_subset@1",)).of(found.recalls)
    assert expected < 1
    assert task.select() == pytest.approx(expected)
