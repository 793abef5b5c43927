"""The stage mine: its tables are the core's, and its record says how they were searched."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from raycd import features as features_io
from raycd import mine
from raycd.config import Config
from raycd.data.schema import GALLERY, IMAGE, TRIPLET, Dataset
from raycd.report.mining import searched_line
from raycd.run import Run
from raycd.runtime.stages import mine as stage
from raycd.runtime.stages.context import IMAGES, TEXTS, Context
from tests.one_shard import write_whole
from tests.runtime.mined import clustered, small_shards


@pytest.fixture(scope="module")
def wide() -> NDArray[np.float32]:
    return clustered()


@pytest.fixture
def context(tmp_path: Path, wide: NDArray[np.float32]) -> Callable[..., Context]:
    """Return a run with features; image-5 and those after 900 cannot be read."""
    run = Run(str(tmp_path / "run"), {})
    ids = [f"image-{i}" for i in range(len(wide))]
    status = ["ok" if i != 5 and i <= 900 else "missing" for i in range(len(wide))]
    with run.writing("stage1", "fingerprint") as writing:
        writing.record |= {"encoder": "abc", "dim": 600}
    with run.writing("embed", "fingerprint") as writing:
        write_whole(str(writing.folder / IMAGES), features_io.to_table(ids, status, wide))
        texts = features_io.to_table(["Is red"], ["ok"], np.ones((1, 600), np.float32))
        write_whole(str(writing.folder / TEXTS), texts)
    rows = [("train", f"image-{i}", f"image-{i + 1}") for i in range(900)] + [
        ("val", "image-0", "image-1")
    ]
    triplets = [
        {
            "triplet_id": f"t{n}",
            "category": "dress",
            "split": s,
            "reference": r,
            "target": t,
            "captions": ["is red"],
        }
        for n, (s, r, t) in enumerate(rows)
    ]
    gallery = [
        {"category": "dress", "split": s, "image_id": i}
        for s in ("train", "val")
        for i in ids[:901]
    ]
    images = pa.table({"image_id": ids, "path": ids, "attributes": [[]] * len(ids)}, schema=IMAGE)
    dataset = Dataset(
        images,
        pa.Table.from_pylist(gallery, schema=GALLERY),
        pa.Table.from_pylist(triplets, schema=TRIPLET),
    )

    def make(**fields: object) -> Context:
        settings = small_shards(**fields).model_dump()
        config = Config.model_validate({"mine": settings, "compute": {"mine_workers": 1}})
        return Context(config, run, _dataset=dataset)

    return make


def mined(context: Context) -> dict[str, Any]:
    """Return what the stage records; check its tables against the core."""
    with context.run.writing("mine", "fingerprint") as writing:
        stage.mine_candidates(context, writing)
        images, texts = context.features("embed")
        triplets = context.dataset.triplets_of("train")
        there = set(images.keys.to_pylist())
        triplets = triplets.filter(
            [row["reference"] in there and row["target"] in there for row in rows(triplets)]
        )
        known = mine.of_triplets(images.keys, triplets)
        pools = mine.make_pools("all", context.dataset.gallery, known)
        values = images.values.numpy()
        found = mine.find_neighbours(values, pools, context.config.mine)
        text_TD = texts.values.numpy().repeat(len(triplets), axis=0)
        table = mine.make_candidates(
            known, found, partial(mine.matching_scores, values, text_TD), encoder="abc"
        )
        assert len(triplets) == 898
        assert pq.read_table(writing.folder / "neighbours.parquet").equals(found)
        assert pq.read_table(writing.folder / "candidates.parquet").to_pylist() == table.to_pylist()
    record = context.run.record("mine")
    assert record is not None
    return record


def rows(table: pa.Table) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = table.to_pylist()
    return listed


def test_the_stage_records_an_exact_search_in_shards(
    ray_cluster: None, context: Callable[..., Context], capsys: pytest.CaptureFixture[str]
) -> None:
    record = mined(context())
    assert record["index"] == {
        "kind": "flat",
        "shards": 3,
        "worker_mib": 0.7,
        "recall": 1.0,
        "sample": 0,
    }
    assert record["warnings"] == []
    assert record["counts"]["overlaps"] == {"dress": 901}
    assert "mine: flat, 3 shards of at most 0.7 MiB, exact\n" in capsys.readouterr().err


def test_the_stage_warns_where_an_approximate_search_misses_neighbours(
    ray_cluster: None, context: Callable[..., Context], capsys: pytest.CaptureFixture[str]
) -> None:
    low = context(
        index="ivf", worker_mib=64, ivf_lists=20, ivf_probes=1, recall_sample=300, neighbours=64
    )
    record = mined(low)
    index, said = record["index"], capsys.readouterr().err
    assert (index["kind"], index["shards"], index["sample"]) == ("ivf", 1, 300)
    assert 0.1 < index["recall"] < 0.95
    [warning] = record["warnings"]
    assert "raise mine.ivf_probes" in warning
    assert f"mine: {searched_line(index)}\nwarning: {warning}\n" in said
