"""Images that are here, and that the machines which embed have not found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raycd.config import Config
from raycd.data.build import DatasetBuilder
from raycd.errors import RunError
from raycd.features import READABLE, shards, to_table
from raycd.features.shards import ShardPlan
from raycd.features.stored import Stored
from raycd.run import Run
from raycd.runtime.stages import embed
from raycd.runtime.stages.context import Context


def test_images_that_are_here_and_were_not_found_end_the_run_and_are_read_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "here.png").write_bytes(b"picture")
    (tmp_path / "folder.png").mkdir()  # is none, wherever one looks
    ids = ["here", "folder", "absent", "broken"]
    builder = DatasetBuilder()
    builder.add_gallery("all", "train", ids, source="here")
    dataset = builder.build({one: str(tmp_path / f"{one}.png") for one in ids})
    context = Context(Config(), Run(str(tmp_path / "run"), {"kind": "x"}), _dataset=dataset)

    def stored(*status: str) -> Stored:
        folder = str(tmp_path / "images")
        shards.begin(folder, ShardPlan(2, 4, 2))
        for number, first in enumerate((0, 2)):
            table = to_table(
                ids[first : first + 2], status[first : first + 2], np.ones((2, 3), np.float32)
            )
            shards.write(folder, number, table)
        return Stored.open(folder)

    found = stored(READABLE, "missing", "missing", "truncated")
    embed.check_reached(context, found, found.report())
    assert len(shards.parts(str(tmp_path / "images"))) == 2
    found = stored("missing", READABLE, READABLE, READABLE)
    with pytest.raises(RunError, match=r"not where they were to be embedded(.|\n)*here\.png"):
        embed.check_reached(context, found, found.report())
    assert list(shards.parts(str(tmp_path / "images"))) == [1]
