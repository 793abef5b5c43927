"""What trials and cells share, in the processes that it is sent to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from raycd import run
from raycd.errors import ConfigError
from raycd.features.map_cache import CacheWriter
from raycd.features.stored import Stored
from raycd.runtime.stages.context import Context
from tests.tune.conftest import Mined
from tune.trial import Tables, train

SHAPE = (3, 2, 2)


def write_cache(folder: Path) -> None:
    """Write the maps of five images, each full of its number."""
    writer = CacheWriter(folder, "map", SHAPE, shard_bytes=48)
    for number in range(5):
        writer.add(f"image-{number}", np.full(SHAPE, number, np.float16))
    writer.close()


def opened(tables: Tables) -> dict[str, Any]:
    """Open the caches twice; return a value, and how many copies this process has made."""
    for _ in range(2):
        extras = tables.extras("cosmo")
        value = extras.of_images(["image-3"])["map"].mean().item()
    copies = [uri for uri in run._copies if uri in tables.caches.values()]
    return {"shapes": extras.shapes(), "value": value, "copies": len(copies)}


def test_features_do_not_pass_through_the_process_that_starts_trials(
    mined: Mined, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(mined.config(Path(mined.run.root).parent), mined.run)
    images, texts = context.features("embed")

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("read in the starting process")

    monkeypatch.setattr(Stored, "features", refuse)
    of_images, of_texts = Tables.of(context, splits=("train",)).features()
    assert of_images.keys == images.keys
    assert torch.equal(of_images.values, images.values)
    assert torch.equal(of_texts.values, texts.values)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["store", "disk"])
def test_another_process_reads_maps_of_a_store_from_a_copy_of_its_own(
    where: str,
    mined: Mined,
    s3: dict[str, str],
    tmp_path: Path,
) -> None:
    write_cache(tmp_path / "maps")
    uri = str(tmp_path / "maps")
    if where == "store":
        uri = "s3://raycd/tables/maps"
        file_system, path = run.open_uri(uri)
        file_system.put(f"{tmp_path}/maps/", f"{path}/", recursive=True)
    tables = replace(mined.tables, caches={"map": uri})
    task = ray.remote(runtime_env={"env_vars": s3})(opened)
    found = ray.get(task.remote(ray.put(tables)))
    copies = 1 if where == "store" else 0
    assert found == {"shapes": {"map": list(SHAPE)}, "value": 3.0, "copies": copies}


def test_a_head_whose_needs_were_not_cached_is_told_so(mined: Mined) -> None:
    config = mined.config(Path("unused"))
    cosmo = config.model_copy(update={"stage2": config.stage2.model_copy(update={"head": "cosmo"})})
    with pytest.raises(ConfigError, match=r"cosmo needs more of the encoder(.|\n)*map"):
        train(mined.tables, cosmo, None)


def test_a_head_of_pooled_features_opens_nothing(mined: Mined) -> None:
    tables = replace(mined.tables, caches={"map": "/nowhere"})
    assert tables.extras("clip_cd").caches == {}
