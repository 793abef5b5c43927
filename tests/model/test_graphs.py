"""Small batches as CUDA graphs: filled up, replayed and cut, with a recorder for CPUs as well."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from raycd import bundle
from raycd.model import graphs
from raycd.model.embed import frozen
from raycd.model.encoder import Encoder
from raycd.model.graphs import SIZES, Function, Recorded, RecordedEncoder
from raycd.search.query import Query
from raycd.search.searcher import Searcher
from tests.families import families, new, write_tokenizer
from tests.train.waiting import Asked

FAMILIES = ["CLIP ResNet", "CLIP ViT", "CLIPA", "SigLIP2", "CoCa", "ConvNeXt"]


class OnCpu:
    """A recorder whose replays run the function again, into the same place."""

    def __init__(self) -> None:
        self.replayed: list[int] = []

    def __call__(
        self, function: Function, given: torch.Tensor
    ) -> tuple[Callable[[], None], torch.Tensor]:
        found = torch.full_like(function(given), torch.nan)

        def replay() -> None:
            self.replayed.append(len(given))
            found.copy_(function(given))

        return replay, found


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Encoder]:
    folder = tmp_path_factory.mktemp("graphs")
    write_tokenizer(folder)
    return lambda name: frozen(new(families(folder)[name], folder), "fp32", "cpu")


def batches(encoder: Encoder, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (rows, *encoder.preprocess.size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    return pixels, encoder.tokenize([f"is {row} cm longer" for row in range(rows)])


@torch.inference_mode()
def test_a_batch_of_any_size_has_the_encoders_features(family: Callable[[str], Encoder]) -> None:
    encoder, recorder = family("CLIP ViT"), OnCpu()
    recorded, kept = RecordedEncoder(encoder, recorder), []
    for rows in (1, 3, 8, 2, 32, 33):
        pixels, tokens = batches(encoder, rows)
        kept.append((recorded.encode_images(pixels), encoder.encode_images(pixels)))
        kept.append((recorded.encode_tokens(tokens), encoder.encode_tokens(tokens)))
    for found, expected in kept:  # of earlier batches, too, which later ones do not write over
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert recorder.replayed == [1, 1, 4, 4, 8, 8, 2, 2, 32, 32]


@torch.inference_mode()
def test_rows_of_another_shape_run_as_they_are() -> None:
    recorder = OnCpu()
    doubled = Recorded("rows", lambda batch: 2.0 * batch, torch.zeros(1, 3), recorder)
    assert doubled(torch.ones(2, 5)).tolist() == [[2.0] * 5] * 2
    assert recorder.replayed == []


@torch.inference_mode()
def test_what_cannot_be_recorded_is_said_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    def refused(function: Function, given: torch.Tensor) -> Any:
        if len(given) == SIZES[0]:  # the last to be recorded
            try:
                raise RuntimeError("operation not permitted when stream is capturing")
            finally:  # as the end of a recording does
                raise RuntimeError("capture failed")
        return OnCpu()(function, given)

    doubled = Recorded("rows", lambda batch: 2.0 * batch, torch.zeros(1, 3), refused)
    assert doubled(torch.ones(4, 3)).tolist() == [[2.0] * 3] * 4
    said = capsys.readouterr().err
    assert "rows are encoded without CUDA graphs: RuntimeError: operation not permitted" in said


@torch.inference_mode()
@pytest.mark.parametrize("name", FAMILIES)
def test_encoders_ask_for_no_number_which_no_graph_could_record(
    family: Callable[[str], Encoder], name: str
) -> None:
    encoder = family(name)
    pixels, tokens = batches(encoder, 2)
    encoder.encode_images(pixels)  # constants of the preprocessing are made once
    with Asked() as asked:
        encoder.encode_images(pixels)
        encoder.encode_tokens(tokens)
    assert asked.count == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@torch.inference_mode()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_gpu_replays_what_it_computes(
    family: Callable[[str], Encoder], name: str, precision: Any
) -> None:
    encoder = frozen(deepcopy(family(name)), precision, "cuda")
    recorded = RecordedEncoder(encoder)
    for rows in (1, 3, 32, 2):
        pixels, tokens = batches(encoder, rows)
        for found, expected in (
            (recorded.encode_images(pixels), encoder.encode_images(pixels)),
            (recorded.encode_tokens(tokens), encoder.encode_tokens(tokens)),
        ):
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_a_searcher_answers_by_graphs_as_without(
    tiny_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = OnCpu()
    monkeypatch.setattr(graphs, "on_cuda", lambda: recorder)

    def answers(**settings: Any) -> list[list[tuple[str, float]]]:
        searcher = Searcher(bundle.load(Path(tiny_bundle.folder)), threads=1, **settings)
        image, *others = tiny_bundle.images
        asked = [Query(image, "is blue"), Query(others[0]), Query(text="is red")]
        found = searcher.search(asked)
        searcher.encode_images([searcher.preprocess(one) for one in others[:3]])
        return [[(one.image_id, round(one.score, 5)) for one in results] for results in found]

    plain = answers()
    assert recorder.replayed == []
    assert answers(graphs=True) == plain
    assert recorder.replayed == [2, 2, 4]  # two texts, two images, three that are added
