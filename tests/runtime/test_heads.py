"""A head with batch norms, a loss of its own and a re-ranking, through the whole pipeline."""

from pathlib import Path
from typing import Any

import pytest

from raycd import bundle
from raycd.config import Config
from raycd.runtime import pipeline
from raycd.search.query import Query
from raycd.search.searcher import Searcher


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_dcnet_trains_on_two_workers_and_is_bundled_and_re_ranks(
    tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    config = Config.model_validate(
        {
            **tiny_settings,
            "runs": str(tmp_path),
            "tracking": {"enabled": False},
            "stage2": {**tiny_settings["stage2"], "head": "dcnet"},
            "compute": {**tiny_settings["compute"], "train_workers": 2},
        }
    )
    outcome = pipeline.run(config)
    assert outcome.metrics is not None
    assert {"zero_shot", "fine_tuned", "dcnet"} == outcome.metrics["variants"].keys()
    loaded = bundle.load(tmp_path / "tiny" / "bundle")
    tracked = loaded.head.state_dict()["compose.gate.0.num_batches_tracked"]
    assert tracked > 0
    searcher = Searcher(loaded, threads=1)
    image_id = searcher.own.image_id(0)
    [results] = searcher.search([Query(image_id=image_id, text="is red", top_k=3)])
    assert all(result.rerank_score is not None for result in results)
    assert pipeline.run(config).done == []
