"""The cells of a comparison on real Ray, over features drawn here: what is trained once, what
again, and that the tables say what the cells say.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from mlflow import MlflowClient

from jobs.comparison import heads, results
from jobs.comparison.cells import IDENTITY, Cells, Record, run_all, tracked
from jobs.comparison.plan import ALWAYS, make_plan
from raycd import mine
from raycd.compare.lines import Table
from raycd.compare.writing import named
from raycd.config import Config, EmbedConfig, MineConfig
from raycd.data.build import DatasetBuilder, TripletRow
from raycd.data.captions import Wording, training_texts
from raycd.data.schema import Dataset
from raycd.errors import RunError
from raycd.evaluate import Metric
from raycd.run import Run
from tune.trial import Tables, Vectors, result

D, IMAGES = 8, 40
IDS = [f"i{n}" for n in range(IMAGES)]
INPUTS = {name: f"{name} as it was" for name in ("encoder", "zero_shot", "stage1", "embed", "mine")}
# Splits: their first image and number of triplets. Images of selection are no substitutes.
SPLITS = {"train": (0, 24), "selection": (32, 6), "val": (0, 30)}
ORIGINALS = 24
METRICS = [Metric(), Metric(k=50)]


@pytest.fixture(scope="module")
def tables(ray_cluster: None) -> Tables:
    """Return triplets i -> i + 1 of two categories over random features, and mined candidates."""
    builder, texts = DatasetBuilder(), dict[str, None]()
    for split, (first, count) in SPLITS.items():
        for category in ("dress", "shirt"):
            builder.add_gallery(category, split, IDS[first:], source="x")
        for n in range(first, first + count):
            category, captions = ("dress", "shirt")[n % 2], [f"is {n}", "long"]
            row = TripletRow(f"{split}/{n}", category, split, IDS[n], IDS[n + 1], captions)
            builder.add_triplet(row, where="here")
            texts |= dict.fromkeys((Wording().evaluation(captions), *training_texts(captions)))
    dataset, rng = builder.build({}), np.random.default_rng(0)
    image_ND = rng.normal(size=(IMAGES, D)).astype(np.float32)
    text_ND = rng.normal(size=(len(texts), D)).astype(np.float32)
    settings = MineConfig(neighbours=4, floor=-1.0, s_max=2)
    train = dataset.triplets_of("train")
    rows = mine.of_triplets(IDS, train)
    pools = mine.make_pools("all", dataset.gallery, rows)
    found = mine.find_neighbours(image_ND, pools, settings)
    text_TD = text_ND[: len(train)]
    candidates = mine.make_candidates(
        rows, found, partial(mine.matching_scores, image_ND, text_TD), encoder="abc"
    )
    vectors = Vectors((pa.array(IDS), image_ND), (pa.array(list(texts)), text_ND))
    return Tables(dataset, candidates, ray.put(vectors), {})


def configured(runs: Path, **stage2: Any) -> Config:
    small = {"bilinear_dim": 2, "projection_dim": 8, "hidden_dim": 8, "batch_size": 8, "lr": 1e-2}
    return Config.model_validate(
        {
            "name": "tiny",
            "runs": str(runs),
            "mine": {"eps_low": 0.0, "floor": -1.0, "eps_high": 1.0, "s_max": 2, "alpha": -1.0},
            "stage2": {"epochs": 2, "k": 1, "logit_scale": 10.0, **small, **stage2},
        }
    )


class Comparison:
    """A comparison of drawn features, without the stages before them."""

    def __init__(self, runs: Path, tables: Tables, **options: Any) -> None:
        self.config = configured(runs)
        given = {"heads": "combiner,clip_cd", "settings": [], "variants": "original,pseudo"}
        self.plan = make_plan(self.config, **(given | {"seeds": 2} | options))
        self.wanted, self.todo = heads.cells_of(self.config, self.plan, tables, INPUTS)
        self.run = Run(str(runs / "tiny"), {"format": "drawn"})
        self.cells = Cells(self.run)
        self.categories = tables.dataset.triplets_of("val")["category"].to_pylist()

    def train(self, **how: Any) -> dict[str, Record]:
        return run_all(self.todo, self.cells, **how)

    def tables(self, found: Mapping[str, Record]) -> list[Table]:
        return results.tables(self.wanted, found, self.categories, METRICS, self.plan.baseline)

    def files(self) -> dict[str, bytes]:
        folder = Path(self.run.root) / "compare" / "cells"
        return {path.name: path.read_bytes() for path in folder.glob("*.json")}


def test_a_comparison_stopped_in_the_middle_goes_on_with_the_cells_that_are_left(
    ray_cluster: None, tmp_path: Path, tables: Tables
) -> None:
    first = Comparison(tmp_path, tables)
    ended: list[Record] = []

    def stop(record: Record) -> None:
        ended.append(record)
        if len(ended) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.train(ended=stop, concurrent=1)
    kept = first.files()
    assert len(kept) == 4

    again, ended = Comparison(tmp_path, tables), []
    found = again.train(ended=ended.append)
    after = again.files()
    assert {name: after[name] for name in kept} == kept
    # Two heads, two seeds: originals for 2 epochs and longer, pseudo triplets
    trained = {cell.path for cell in again.todo}
    assert len(after) == len(trained) == len(found)
    assert len([name for name in after if name.startswith("combiner-")]) == 6
    assert len(ended) == len(after) - 4
    assert Comparison(tmp_path, tables).train() == found


def test_the_tables_say_what_the_cells_say(
    ray_cluster: None, tmp_path: Path, tables: Tables
) -> None:
    comparison = Comparison(tmp_path, tables)
    found = comparison.train()
    made = comparison.tables(found)
    assert [table.key for table in made] == [
        *("epochs-original", "epochs-pseudo", "triplets-original"),
        *("epochs-gain", "triplets-gain"),
    ]
    assert made[1].title.startswith("At equal epochs, which are equal triplets seen, with pseudo")
    results.write(comparison.run, "comparison", made)
    text = (Path(comparison.run.root) / "compare" / "comparison.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    for want in comparison.wanted:
        key = f"{want.form or 'epochs'}-{want.variant or 'original'}"
        own = [r for r in rows if r["method"] == want.name and r["table"] == key]
        if key == "triplets-pseudo":
            assert own == []  # the same trainings as at equal epochs
            continue
        records = [found[path] for path in want.paths.values()]
        for row in own:
            values = [record["recalls"]["average"][row["metric"]] for record in records]
            assert float(row["mean"]) == pytest.approx(np.mean(values))
            if want.is_trained:
                assert float(row["sd"]) == pytest.approx(np.std(values, ddof=1), abs=1e-9)
                assert int(row["triplets_seen"]) == records[0]["seen"]
                assert int(row["parameters"]) == records[0]["parameters"] > 0
    originals = [w for w in comparison.wanted if w.variant == "original" and w.name == "combiner"]
    seen = {want.form: found[want.paths[0]]["seen"] for want in originals}
    [pseudo] = {
        found[want.paths[0]]["seen"]
        for want in comparison.wanted
        if want.variant == "pseudo" and want.name == "combiner"
    }
    assert seen["epochs"] == 2 * ORIGINALS < pseudo
    assert pseudo <= seen["triplets"] < pseudo + ORIGINALS


def test_a_setting_of_one_row_trains_that_row_anew_and_rows_of_equal_settings_share_cells(
    ray_cluster: None, tmp_path: Path, tables: Tables
) -> None:
    small = {"heads": "combiner", "variants": "original", "seeds": 1}
    Comparison(tmp_path, tables, **small).train()
    before = Comparison(tmp_path, tables, **small).files()
    twice = Comparison(tmp_path, tables, **small | {"heads": "combiner,same=combiner"})
    twice.train()
    assert twice.files() == before
    other = Comparison(tmp_path, tables, **small | {"settings": ["combiner.stage2.dropout=0"]})
    other.train()
    assert set(before) < set(other.files())


def test_a_threshold_does_not_touch_cells_without_pseudo_triplets(
    tmp_path: Path, tables: Tables
) -> None:
    def paths(variant: str, *settings: str) -> set[str]:
        options = {"heads": "combiner", "variants": variant, "settings": settings}
        return {cell.path for cell in Comparison(tmp_path, tables, **options).todo}

    assert paths("original", "combiner.mine.alpha=0.9") == paths("original")
    assert paths("pseudo", "combiner.mine.alpha=0.9") != paths("pseudo")


def test_a_cell_whose_result_another_version_gave_is_trained_anew(
    tmp_path: Path, tables: Tables
) -> None:
    """Subsets are re-ranked since: it changes heads that re-rank, of data that has subsets."""

    def paths(dataset: Dataset, head: str) -> set[str]:
        options = {"heads": head, "variants": "original", "seeds": 1}
        own = replace(tables, dataset=dataset)
        return {cell.path for cell in Comparison(tmp_path, own, **options).todo}

    plain, column = tables.dataset, tables.dataset.triplets.column_names.index("subset")
    subsets = pa.array([IDS[:3]] * len(plain.triplets), plain.triplets.schema.field(column).type)
    cirr = replace(plain, triplets=plain.triplets.set_column(column, "subset", subsets))
    assert paths(cirr, "combiner") == paths(plain, "combiner")
    changed = paths(cirr, "dcnet") ^ paths(plain, "dcnet")
    assert len(changed) == 2
    assert all("/dcnet-" in path for path in changed)


def test_a_head_that_fails_is_told_below_the_tables_and_tried_again(
    ray_cluster: None, tmp_path: Path, tables: Tables
) -> None:
    settings = [f"clip_cd.stage2.bilinear_dim={D}"]  # as large as the features: impossible
    comparison = Comparison(tmp_path, tables, variants="original", seeds=1, settings=settings)
    ended: list[Record] = []
    found = comparison.train(ended=ended.append)
    assert {record["head"] for record in ended} >= {"combiner"}
    assert all(record["head"] != "clip_cd" for record in ended)
    [table, *_] = comparison.tables(found)
    assert "clip_cd" not in {lines[0].method.name for lines in table.lines}
    assert table.notes[0].startswith(
        "Failed and left out: clip_cd without pseudo triplets, seed 0: ConfigError: "
        "stage2.bilinear_dim (K) must be less"
    )
    again = comparison.train(ended=ended.append)
    assert {record["head"] for record in again.values() if "error" in record} == {"clip_cd"}


def test_a_failure_is_told_where_its_training_is_missing(
    ray_cluster: None, tmp_path: Path, tables: Tables
) -> None:
    comparison = Comparison(tmp_path, tables)
    found = comparison.train()
    [lost] = [
        row.paths[1]
        for row in comparison.wanted
        if (row.name, row.form, row.variant) == ("clip_cd", "epochs", "pseudo")
    ]
    said = "Failed and left out: clip_cd with pseudo triplets, seed 1: it broke"
    made = comparison.tables(found | {lost: {"error": "it broke"}})
    told = {table.key for table in made if said in table.notes}
    of_pseudo = {table.key for table in made if "pseudo" in table.key or "gain" in table.key}
    assert {"epochs-pseudo", "epochs-gain"} <= told <= of_pseudo
    [table] = [table for table in made if table.key == "epochs-pseudo"]
    names = {lines[0].method.name: named(lines[0].method) for lines in table.lines}
    assert (names["clip_cd"], names["combiner"]) == ("clip_cd (1 seed)", "combiner")


def test_a_cell_that_is_lost_with_its_machine_is_one_that_has_failed(ray_cluster: None) -> None:
    class Owner:
        def begun(self) -> list[Any]:
            return [ray.remote(num_cpus=0)(lambda: time.sleep(60)).remote()]

    owner: Any = ray.remote(num_cpus=0)(Owner)
    owner = owner.remote()
    [done] = ray.get(owner.begun.remote())
    ray.kill(owner)
    assert result(done)["error"].startswith("its process was lost: OwnerDiedError: ")


def test_features_are_put_into_the_object_store_once_whatever_the_heads_need(
    ray_cluster: None, tmp_path: Path, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, puts = ray.put, []

    def counted(value: Any) -> Any:
        puts.append(type(value))
        return put(value)

    monkeypatch.setattr(ray, "put", counted)
    options = {"heads": "combiner,cosmo,hffca", "variants": "original", "seeds": 1}
    found = Comparison(tmp_path, tables, **options).train()
    assert puts == [Tables]
    failed = {record["head"]: record["error"] for record in found.values() if "error" in record}
    assert failed.keys() == {"cosmo", "hffca"}  # these tables have no maps
    assert "the head cosmo needs more of the encoder than pooled features" in failed["cosmo"]


def test_where_every_training_fails_the_error_is_told(
    ray_cluster: None, tmp_path: Path, tables: Tables
) -> None:
    settings = [f"clip_cd.stage2.bilinear_dim={D}"]
    comparison = Comparison(tmp_path, tables, heads="clip_cd", seeds=1, settings=settings)
    found = comparison.train()
    with pytest.raises(RunError, match="every training of the comparison has failed"):
        comparison.tables(found)
    with pytest.raises(RunError, match="every training of the comparison has failed"):
        results.check_trained([None, None], ["Failed and left out: CLIP-CD"])


def test_a_run_whose_encoder_changed_is_refused_until_its_cells_are_gone(tmp_path: Path) -> None:
    config = configured(tmp_path)
    run = Run(str(tmp_path / "tiny"), {"format": "drawn"})
    Cells(run).claim(config, INPUTS, {"stage1": "A"})
    changed = config.model_copy(update={"stage1": config.stage1.model_copy(update={"epochs": 1})})
    Cells(run).check(changed)  # there is no cell yet
    run.write_json("compare/cells/combiner-original-0-0123.json", {})
    Cells(run).check(config)
    with pytest.raises(RunError) as caught:
        Cells(run).check(changed)
    assert str(caught.value).splitlines()[1] == "  got:      stage1.epochs 1 instead of 20"
    embeds = config.model_copy(update={"embed": EmbedConfig(precision="fp32")})
    Cells(run).check(embeds)  # it is what auto asks for
    embeds = config.model_copy(update={"embed": EmbedConfig(precision="bf16")})
    with pytest.raises(RunError, match=r"embed\.precision 'bf16' instead of 'auto'"):
        Cells(run).check(embeds)
    adapts = config.model_copy(update={"adapt": config.adapt.model_copy(update={"epochs": 3})})
    with pytest.raises(RunError, match=r"adapt\.epochs 3 instead of 0"):
        Cells(run).check(adapts)
    data = config.data.model_copy(update={"selection_fraction": 0.3})
    with pytest.raises(RunError, match=r"data\.selection_fraction 0\.3 instead of"):
        Cells(run).check(config.model_copy(update={"data": data}))
    heads_alone = configured(tmp_path, epochs=9, head="combiner")
    Cells(run).check(heads_alone)
    with pytest.raises(RunError, match="got:      another output of embed"):
        Cells(run).claim(config, INPUTS | {"embed": "other"}, {"stage1": "A"})
    with pytest.raises(RunError, match="got:      another output of stage1"):
        Cells(run).claim(config, INPUTS, {"stage1": "B"})  # trained a second time
    Cells(run).claim(config, INPUTS, {"stage1": "A"})
    run.write_json(IDENTITY, {"settings": {}, "inputs": INPUTS})  # of an earlier raycd
    Cells(run).check(adapts)
    Cells(run).claim(config, INPUTS, {"stage1": "B"})


@pytest.mark.slow
def test_each_cell_is_a_child_run_of_mlflow_once(
    ray_cluster: None, tmp_path: Path, tables: Tables
) -> None:
    options = {"heads": "combiner", "variants": "original", "seeds": 1}
    for _ in range(2):
        comparison = Comparison(tmp_path, tables, **options)
        with tracked(comparison.config, comparison.cells) as (tracker, runs):
            found = comparison.train(ended=runs.add)
            runs.catch_up(list(found.values()))
            made = comparison.tables(found)
            results.write(comparison.run, "comparison", made)
            results.log(tracker, comparison.run, "comparison", made)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs_found = client.search_runs(["1"])
    [parent] = [run for run in runs_found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs_found if run is not parent]
    assert (parent.info.run_name, parent.info.status) == ("tiny-compare", "FINISHED")
    assert len(children) == len(comparison.files()) == len(ALWAYS) + 1
    [child] = [run for run in children if run.data.tags["raycd.head"] == "combiner"]
    [record] = [r for r in found.values() if r["head"] == "combiner"]
    assert (
        child.data.metrics["val/average/recall_at_10"] == record["recalls"]["average"]["recall@10"]
    )
    assert child.data.params["stage2.head"] == "combiner"
    mean = parent.data.metrics["epochs-original/combiner/recall_at_10/mean"]
    assert mean == pytest.approx(record["recalls"]["average"]["recall@10"])
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert names == {"comparison.md", "comparison.csv", "comparison.tex"}
    assert json.loads(next(iter(comparison.files().values())))["mlflow"]["parent"] == (
        parent.info.run_id
    )


def test_rows_that_train_nothing_are_one_cell_each_and_in_every_table(
    ray_cluster: None, tmp_path: Path, tables: Tables
) -> None:
    comparison = Comparison(tmp_path, tables, seeds=1)
    still = [want for want in comparison.wanted if not want.is_trained]
    assert [want.name for want in still] == list(ALWAYS) == ["image_only", "text_only", "sum"]
    paths = [path for want in still for path in want.paths.values()]
    assert [cell.path for cell in comparison.todo if not cell.is_trained] == paths
    made = comparison.tables(comparison.train())
    for table in made:
        if not table.key.endswith("-gain"):
            names = [lines[0].method.name for lines in table.lines]
            assert names == [*ALWAYS, "combiner", "clip_cd"]
