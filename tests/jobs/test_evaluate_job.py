"""jobs/evaluate.py beyond the stage: single queries, other protocols, bundles, submissions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from jobs import evaluate
from raycd.config import Config, cli
from raycd.data.schema import REVERSED
from raycd.evaluate import MASKED
from raycd.evaluate.per_query import PER_QUERY
from raycd.runtime import pipeline

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict[str, Any]) -> Path:
    """Run the tiny pipeline; give the file of its settings."""
    folder = tmp_path_factory.mktemp("evaluated")
    own = {**tiny_settings, "runs": str(folder / "runs"), "tracking": {"enabled": False}}
    pipeline.run(Config.model_validate(own))
    (folder / "my.yaml").write_text(yaml.safe_dump(own))
    return folder / "my.yaml"


@pytest.fixture
def job(settings: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return what runs the job: its exit code, and what it says."""

    def run(*argv: str) -> tuple[int, str, str]:
        argv = ("--config", str(settings), *argv)
        code = cli.run(evaluate.main, argv, prog="evaluate", description="", flags=evaluate.flags)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.mark.slow
def test_single_queries_have_ranks_and_the_first_fifty(
    job: Callable[..., tuple[int, str, str]], settings: Path, tmp_path: Path
) -> None:
    file = tmp_path / "queries.parquet"
    code, said, _ = job("--protocol", "all", "--per-query", str(file))
    assert code == 0
    assert "original-masked" in said
    table = pq.read_table(file)
    assert table.schema.equals(PER_QUERY)
    rows = table.to_pylist()
    assert len(rows) == 3 * 3 * 60  # protocols, variants, queries
    record = json.loads((settings.parent / "runs/tiny/evaluate/stage.json").read_text())
    for row in rows:
        if row["protocol"] == "original":
            assert row["rank"] == record["ranks"][row["variant"]][row["triplet_id"]]
        assert len(row["top"]) == len(row["scores"]) == len(set(row["top"])) <= 50
        assert row["scores"] == sorted(row["scores"], reverse=True)
        assert (row["reference"] in row["top"]) == (row["protocol"] not in MASKED)
        [target] = row["targets"]
        # Ties count against us, so the rank is not before the position in the list
        assert row["top"].index(target) + 1 <= row["rank"]
    for variant, recalls in record["variants"].items():
        ranks = [
            row["rank"]
            for row in rows
            if (row["protocol"], row["variant"], row["category"]) == ("original", variant, "dress")
        ]
        assert recalls["dress"]["recall@10"] == sum(rank <= 10 for rank in ranks) / len(ranks)


@pytest.mark.slow
def test_one_other_protocol_and_both_orders_need_no_training(
    job: Callable[..., tuple[int, str, str]], settings: Path, tmp_path: Path
) -> None:
    stages = settings.parent / "runs/tiny"
    before = {path: path.read_text() for path in stages.glob("*/stage.json")}
    file = tmp_path / "queries.parquet"
    code, said, _ = job(
        *("--protocol", "val", "--per-query", str(file), "--evaluate.captions", "both_orders")
    )
    assert code == 0
    assert "average" in said
    rows = pq.read_table(file).to_pylist()
    assert {row["protocol"] for row in rows} == {"val"}
    assert sum(row["triplet_id"].endswith(REVERSED) for row in rows) == len(rows) / 2
    changed = {path.parent.name for path, text in before.items() if path.read_text() != text}
    assert changed == {"evaluate"}


@pytest.mark.slow
def test_a_bundle_is_measured_on_another_data_set(
    job: Callable[..., tuple[int, str, str]], settings: Path, tmp_path: Path
) -> None:
    """CIRCO has no train split: nothing is trained, and any bundle may be measured on it."""
    catalogue = settings.parent / "runs/tiny/catalogue/images"
    pictures = sorted(catalogue.glob("DV*.jpg"))[:8]
    folder = tmp_path / "COCO2017_unlabeled/unlabeled2017"
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures, 1):
        (folder / f"{number:012d}.jpg").write_bytes(picture.read_bytes())
    infos = [{"id": n, "file_name": f"{n:012d}.jpg"} for n in range(1, 9)]
    queries = [
        {"id": n, "reference_img_id": n + 1, "relative_caption": "is red", "gt_img_ids": [n + 2, 8]}
        for n in range(3)
    ]
    for name, content in (
        ("COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"images": infos}),
        ("annotations/val.json", queries),
        ("annotations/test.json", [{**query, "gt_img_ids": None} for query in queries]),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    data = ("--data.format", "circo", "--data.root", str(tmp_path))
    bundle = ("--bundle", str(settings.parent / "runs/tiny/bundle"))
    code, said, error = job(*data, *bundle, "--evaluate.map_ks", "5,10", "--evaluate.ks", "5")
    assert code == 0, error
    assert "mAP@5" in said
    assert "CLIP-CD" in said
    code, said, error = job(*data, *bundle, "--submission", str(tmp_path / "answers"))
    assert code == 0, error
    answers = json.loads((tmp_path / "answers/circo_submission.json").read_text())
    assert {key: sorted(best) for key, best in answers.items()} == {
        str(n): list(range(1, 9)) for n in range(3)
    }
    (folder / "000000000008.jpg").unlink()
    code, said, error = job(*data, *bundle, "--data.max_missing", "0.2")
    assert code == 0, error
    assert "warning: 1 images of the gallery are missing" in said
    code, _, error = job(*data, *bundle, "--data.max_missing", "0.1")
    assert code == 2
    assert "1 of 8 images (12.5%) are missing" in error
    code, _, error = job(*data, "--name", "other")
    assert code == 2
    assert "--bundle" in error


@pytest.mark.slow
def test_a_service_that_is_not_there_is_one_message(
    job: Callable[..., tuple[int, str, str]],
) -> None:
    code, said, error = job("--endpoint", "http://127.0.0.1:9")
    assert (code, said) == (2, "")
    assert "127.0.0.1:9" in error


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--protocol", "orignal"], "all or original"),
        (["--endpoint", "http://127.0.0.1:9", "--bundle", "x"], "leave one of them out"),
        (["--gallery", "shop"], "give --endpoint, too"),
        (["--submission", "x"], "no evaluation server"),
        (["--submission", "x", "--per-query", "y.parquet"], "--protocol or --per-query beside it"),
        (["--per-query", "absent/y.parquet"], "a file in a folder that is there"),
        (["--per-query", str(Path(__file__).parent)], "a file in a folder that is there"),
        (["--submission", __file__, "--data.format", "circo"], "cannot be written there"),
        (["--submission", "s3://shop/answers"], "--submission is a folder of this machine"),
        (["--per-query", "s3://shop/q.parquet"], "--per-query is a file of this machine"),
    ],
)
def test_mistakes_are_one_message(
    argv: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--preset", "demo", "--runs", str(tmp_path), *argv]
    code = cli.run(evaluate.main, argv, prog="evaluate", description="", flags=evaluate.flags)
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err.count("error: ") == 1
    assert part in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bundle_is_measured_on_the_demo_that_its_run_has_drawn(
    job: Callable[..., tuple[int, str, str]], settings: Path, tmp_path: Path
) -> None:
    bundle = settings.parent / "runs" / "tiny" / "bundle"
    code, out, _ = job("--bundle", str(bundle))
    assert code == 0
    assert "CLIP-CD" in out
    code, _, err = job("--bundle", str(bundle), "--runs", str(tmp_path))
    assert code == 2
    assert "nothing has drawn the demo data yet" in err


def test_queries_that_nobody_has_drawn_are_asked_of_no_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--preset", "demo", "--runs", str(tmp_path), "--endpoint", "http://127.0.0.1:9"]
    code = cli.run(evaluate.main, argv, prog="evaluate", description="", flags=evaluate.flags)
    said = capsys.readouterr().err
    assert code == 2
    assert "nothing has drawn the demo data yet" in said
    assert "jobs/train.py with the same settings first" in said
