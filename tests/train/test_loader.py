"""What the processes that decode tell of images that they cannot read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raycd.data.images import BrokenImage
from raycd.train.triplets import Loader, Work


class Gone:
    """A reader of a picture that is gone."""

    def __getitem__(self, work: Work) -> None:
        raise BrokenImage("dress/a.jpg is gone", reason="missing")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_image_that_is_gone_is_told_by_its_name_whoever_decodes(workers: int) -> None:
    reader: Any = Gone()
    row = np.zeros(1, np.int64)
    with pytest.raises(BrokenImage) as caught:
        list(Loader(reader, workers, pin=False).batches([Work(row, row, row)]))
    assert str(caught.value) == "dress/a.jpg is gone"
    assert caught.value.reason == "missing"
