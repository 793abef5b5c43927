"""What the stages of a run share: settings, folders, the data set, what earlier ones wrote."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from raycd.config import Config
from raycd.data.schema import Dataset
from raycd.data.selection import SELECTION
from raycd.evaluate import query_key, text_of
from raycd.features import Features, map_cache
from raycd.features.map_cache import Extras
from raycd.features.stored import Stored
from raycd.index.half import room
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.model.fusion.head import WORDS
from raycd.model.tokenizer import context_length
from raycd.run import Run
from raycd.runtime.record.mlflow_run import MlflowRun
from raycd.runtime.stages import reading

ZERO_SHOT, ADAPTED, FINE_TUNED = "zero_shot", "adapted", "fine_tuned"
IMAGES, TEXTS, QUERIES = "images", "texts", "queries"  # folders of shards in a stage's
COMPOSED = "triplets.parquet"  # of the stage compose (catalogue.py)
# The stage that caches each need of a head (maps.py)
CACHES = {"map": "maps", "middle": "middle_maps", "tokens": "tokens"}


@dataclass
class Context:
    """What the stages of a run share."""

    config: Config
    run: Run
    tracked: MlflowRun = field(default_factory=lambda: MlflowRun(None, ""))
    """The MLflow run of the stage that runs."""
    _dataset: Dataset | None = field(default=None, repr=False)
    _composed: tuple[str, Dataset] | None = field(default=None, repr=False)

    @property
    def own(self) -> Dataset:
        """The data set as it was read, on first use, after the demo data has been drawn."""
        if self._dataset is None:
            data = self.config.data
            root = self.run.path("catalogue") if data.format == "synthetic" else data.root
            self._dataset = reading.dataset(self.config, root)
        return self._dataset

    @property
    def dataset(self) -> Dataset:
        """Train, selection and val, with the triplets of the stage `compose` once it has run."""
        if not reading.composes(self.config, self.own):
            return self.own
        record = self.run.record("compose")
        if record is None:
            return self.own
        if self._composed is None or self._composed[0] != record["fingerprint"]:
            table = pq.read_table(self.run.local("compose") / COMPOSED)
            found = reading.composed(self.own, table, self.config)
            self._composed = (record["fingerprint"], found)
        return self._composed[1]

    @property
    def before_stage1(self) -> str:
        """The stage whose encoder stage 1 begins with."""
        return "adapt" if self.config.adapt.epochs else "encoder"

    @property
    def embedded_before(self) -> str:
        """The stage that has features of that encoder."""
        return "adapt" if self.config.adapt.epochs else "zero_shot"

    def paths(self) -> dict[str, str | None]:
        """Return the path of every image; None where no file was found."""
        return paths_of(self.own)

    def readable(self) -> dict[str, str]:
        """Return the paths of the images that the stage zero_shot could read."""
        missing = dict(self.stored("zero_shot", IMAGES).unreadable())
        paths = self.paths().items()
        return {key: path for key, path in paths if path is not None and key not in missing}

    def stored(self, stage: str, what: str) -> Stored:
        """Open the features of `zero_shot`, `embed` or `stage2`: IMAGES, TEXTS or QUERIES."""
        return Stored.open(self.run.path(stage, what))

    def features(self, stage: str) -> tuple[Features, Features]:
        """Read image and text features of `zero_shot` or `embed`."""
        return self.stored(stage, IMAGES).features(), self.stored(stage, TEXTS).features()

    def val_features(self, stage: str) -> tuple[Features, Features]:
        """Read the features that val's queries need, of `zero_shot` or `embed`, into mapped files.

        They are those of its galleries' images, of its references and of its texts.
        """
        queries = self.dataset.queries("val", both_orders=True)
        wanted = {
            IMAGES: [*self.dataset.images_of("val"), *(row["reference"] for row in queries)],
            TEXTS: [row["text"] for row in queries],
        }
        images, texts = (
            self.stored(stage, what).features(list(dict.fromkeys(keys)), room=room)
            for what, keys in wanted.items()
        )
        return images, texts

    def extras(self, needs: Collection[str]) -> Extras:
        """Open the caches of what a head needs beside features."""
        found: dict[str, map_cache.MapCache | map_cache.LazyTokens] = {
            need: map_cache.read(self.run.local(CACHES[need])) for need in self.caches(needs)
        }
        if WORDS in needs:
            used = encoders.load_saved(self.run.local("stage1") / "encoder")
            length = context_length(used.model_config)
            found[WORDS] = map_cache.LazyTokens(used.tokenizer, [length])
        return Extras(found)

    def caches(self, needs: Collection[str]) -> dict[str, str]:
        """Return where these caches are, for other processes: paths or URIs by need."""
        return {need: self.run.path(CACHES[need]) for need in sorted(needs) if need in CACHES}

    def composed(self) -> Features:
        """Read the queries of val that the encoder itself composed, for the head joint."""
        return self.stored("stage2", QUERIES).features()

    def recorded(self, stage: str, key: str) -> Any:
        """Return an entry of a stage's record."""
        record = self.run.record(stage)
        assert record is not None, f"{stage} comes before"
        return record[key]


def needs(config: Config) -> frozenset[str]:
    """Return what the chosen head needs of the encoder beside pooled features."""
    return fusion.head_class(config.stage2.head).needs


def own_device(config: Config) -> str:
    """Return where a head runs in this process: on its GPU, if it has one and may use it.

    A worker of Ray's has those that Ray reserved for it. torch may see others there, too.
    """
    wanted = config.compute.device != "cpu" and torch.cuda.is_available()
    if wanted and ray.is_initialized() and ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        wanted = bool(ray.get_gpu_ids())
    return "cuda" if wanted else "cpu"


def paths_of(dataset: Dataset) -> dict[str, str | None]:
    """Return the path of every image; None where no file was found."""
    images = dataset.images
    return dict(zip(images["image_id"].to_pylist(), images["path"].to_pylist(), strict=True))


def image_table(dataset: Dataset) -> pa.Table:
    """Return all images as rows (key, path)."""
    return dataset.images.select(["image_id", "path"]).rename_columns(["key", "path"])


def query_table(dataset: Dataset, split: str) -> pa.Table:
    """Return the distinct queries of a split as rows (key, path, text), by `query_key`."""
    queries = {query_key(row): row for row in dataset.queries(split, both_orders=True)}
    paths = paths_of(dataset)
    columns = {
        "key": list(queries),
        "path": [paths[row["reference"]] for row in queries.values()],
        "text": [text_of(row) for row in queries.values()],
    }
    return pa.table({name: pa.array(own, pa.string()) for name, own in columns.items()})


def embedded_texts(dataset: Dataset) -> list[str]:
    """Return the distinct texts that stage 2 and the evaluation use."""
    return texts_of(dataset, ["val", SELECTION], training=True)


def texts_of(dataset: Dataset, splits: Sequence[str], *, training: bool = False) -> list[str]:
    """Return the distinct texts of some splits, both orders, and all texts that training uses."""
    rows = [row for split in splits for row in dataset.queries(split, both_orders=True)]
    texts = dict.fromkeys(row["text"] for row in rows)
    if training:
        for captions in dataset.triplets_of("train")["captions"].to_pylist():
            texts |= dict.fromkeys(dataset.wording.training(captions))  # evaluation's is the first
    return list(texts)
