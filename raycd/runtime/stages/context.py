"""The stages of the pipeline: each reads what earlier ones wrote and writes a folder of its own.

encoder     the pre-trained CLIP, saved as raycd keeps encoders
catalogue   draws the demo data                                          (format synthetic only)
zero_shot   its features of all images, and which images are missing
adapt       CLIP fine-tuned on titles, and its features                  (catalogue.py)
compose     triplets made of attributes                                  (catalogue.py)
stage1      fine-tuned CLIP
embed       its features of all images and all text variants
maps, middle_maps, tokens   what some heads need beside them              (map_stages.py)
mine        neighbours and candidate pseudo triplets with their scores   (mine_stages.py)
filter      the pseudo triplets that eq. 9 and alpha leave               (mine_stages.py)
stage2      fusion head
evaluate    recall of every variant                                      (evaluation.py)
bundle      encoder, head, gallery and index for serving                 (bundle_stage.py)
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from raycd import progress, scratch
from raycd.config import Config, Stage1Config, Stage2Config
from raycd.data.demo.garments import CATEGORIES
from raycd.data.demo.synthetic import SPLITS, write_demo_data
from raycd.data.schema import Dataset
from raycd.data.selection import SELECTION
from raycd.durable import sha256
from raycd.features import Features, map_cache
from raycd.features.map_cache import Extras
from raycd.features.stored import Stored
from raycd.index.half import room
from raycd.model import encoder as encoders
from raycd.model import fusion, lora, maps
from raycd.model.encoder import Encoder
from raycd.model.fusion import joint
from raycd.model.fusion.head import WORDS
from raycd.model.fusion.registry import WEIGHTS
from raycd.model.tokenizer import context_length
from raycd.progress import Bar
from raycd.run import Run, Writing, fingerprint, local_copy
from raycd.runtime import beginning, embed_shards, embedding, inversion, reading, training
from raycd.runtime.mlflow_run import MlflowRun
from raycd.runtime.reading import dataset as dataset
from raycd.train import checkpoint, hard_negatives
from raycd.train.finetune import FineTune, parameters, prepare
from raycd.train.fuse import Fuse, new_head
from raycd.train.loop import Schedule
from raycd.train.task import Task
from raycd.train.triplets import readable_triplets

ZERO_SHOT, ADAPTED, FINE_TUNED = "zero_shot", "adapted", "fine_tuned"
IMAGES, TEXTS, QUERIES = "images", "texts", "queries"  # folders of shards in a stage's
LISTED = "missing_images.json"
COMPOSED = "triplets.parquet"  # of the stage compose (catalogue.py)
# The stage that caches each need of a head (map_stages.py)
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
            self._dataset = dataset(self.config, root)
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

    def paths(self) -> dict[str, str | None]:
        """Return the path of every image; None where no file was found."""
        images = self.own.images
        return dict(zip(images["image_id"].to_pylist(), images["path"].to_pylist(), strict=True))

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
        found: dict[str, map_cache.MapCache | map_cache.Words] = {
            need: map_cache.read(self.run.local(CACHES[need])) for need in self.caches(needs)
        }
        if WORDS in needs:
            used = encoders.load_saved(self.run.local("stage1") / "encoder")
            length = context_length(used.model_config)
            found[WORDS] = map_cache.Words(used.tokenizer, [length])
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


def demo_data(context: Context, writing: Writing) -> None:
    """Draw the demo data."""
    config = context.config.data.synthetic
    total = len(CATEGORIES) * (config.train_images + config.val_images)
    with Bar("draw demo data", total=total, unit="images") as bar:
        write_demo_data(writing.folder, config, bar.advance)
    writing.record["counts"] = {
        "images": total,
        "categories": len(CATEGORIES),
        "splits": len(SPLITS),
    }


def encoder(context: Context, writing: Writing) -> None:
    """Load the pre-trained CLIP, and save it in the one form that the other stages read."""
    loaded, name = beginning.load_encoder(context.config)
    loaded.save(writing.folder / "encoder")
    beginning.keep_head(context.config, writing.folder)
    writing.record |= {"encoder": loaded.fingerprint(), "dim": loaded.dim, "model": name}
    writing.record["composes"] = loaded.composes
    writing.record["gives"] = maps.given(loaded)


def zero_shot(context: Context, writing: Writing) -> None:
    """Embed every image, which finds missing and broken ones, and the evaluation texts of val."""
    used = encoders.load_saved(context.run.local("encoder") / "encoder")
    images = embed_all(context, writing, used, texts_of(context.own, ["val"]))
    missing = images.report()
    writing.record["missing"] = missing.to_dict()
    listed = context.run.path(LISTED)
    if len(missing):
        context.run.write_chunks(LISTED, images.listing(missing))
        reasons = ", ".join(f"{count} {reason}" for reason, count in missing.counts().items())
        progress.say(f"{len(missing)} images are missing or broken: {reasons}; listed in {listed}")
    else:
        context.run.discard(LISTED)  # of an earlier state of the data set
    missing.check(len(context.own.images), context.config.data.max_missing, listed=listed)


def stage1(context: Context, writing: Writing) -> None:
    """Fine-tune CLIP (3.2.1)."""
    config, source = context.config, context.run.path(context.before_stage1, "encoder")
    tuned = encoders.load_saved(context.run.local(context.before_stage1) / "encoder")
    if config.stage1.finetune != "none" and config.stage1.epochs > 0:
        paths = context.readable()
        usable, left_out = readable_triplets(context.dataset, paths)
        writing.record["counts"] = {"triplets": len(usable), "left_out": left_out}
        settings, adapters = config.stage1, prepare(tuned, config.stage1, config.seed)
        writing.record["parameters"] = parameters("stage 1", tuned)
        trained = training.train(
            "stage 1",
            _make_finetune,
            {"encoder": source, "dataset": context.dataset, "paths": paths},
            Schedule.of(settings, config.seed),
            config,
            tracked=context.tracked,
            **storage(context, writing),
        )
        checkpoint.load_weights(trained.checkpoint, nn.ModuleDict({"encoder": tuned}))
        lora.merge(adapters)
        writing.record |= _record(trained, settings)
    tuned.save(writing.folder / "encoder")
    writing.record |= {"encoder": tuned.fingerprint(), "dim": tuned.dim}


def embed(context: Context, writing: Writing) -> None:
    """Embed all images and all text variants with the fine-tuned encoder (eq. 8)."""
    used = encoders.load_saved(context.run.local("stage1") / "encoder")
    embed_all(context, writing, used, embedded_texts(context.dataset))


def stage2(context: Context, writing: Writing) -> None:
    """Train the fusion head on cached features (3.2.2)."""
    config, settings = context.config, context.config.stage2
    if fusion.head_class(settings.head).on_titles:
        _learn_from_titles(context, writing)
        return
    shapes = {need: context.recorded(CACHES[need], "shape") for need in sorted(needs(config))}
    head, head_config = new_head(config, context.recorded("stage1", "dim"), shapes)
    beginning.go_on(head, config, context.run.local("encoder"))
    if settings.epochs > 0 and any(True for _ in head.parameters()):
        trained = training.train(
            "stage 2",
            _make_fuse,
            {
                "features": context.run.path("embed"),
                "pseudo": context.run.path("filter"),
                "mined": context.run.path("mine"),
                "dataset": context.dataset,
                "dim": head_config.dim,
                "caches": context.caches(shapes),
                "encoder": context.run.path("encoder"),
            },
            Schedule.of(settings, config.seed),
            config,
            tracked=context.tracked,
            **storage(context, writing, context.recorded("stage1", "encoder")),
        )
        checkpoint.load_weights(trained.checkpoint, nn.ModuleDict({"head": head}))
        writing.record |= _record(trained, settings)
    if head_config.name == joint.NAME:
        _compose(context, writing)
    fusion.save(head, head_config, writing.folder / "head")
    writing.record["head"] = sha256(writing.folder / "head" / WEIGHTS)


def _learn_from_titles(context: Context, writing: Writing) -> None:
    """Train a head that looks at no triplet."""
    place = storage(context, writing, context.recorded("stage1", "encoder"))
    encoder = context.run.local("stage1") / "encoder", context.run.path("stage1", "encoder")
    first, how = context.run.path("encoder"), {"tracked": context.tracked, **place}
    head, head_config, record = inversion.train(context.config, context.own, *encoder, first, how)
    fusion.save(head, head_config, writing.folder / "head")
    writing.record |= {**record, "head": sha256(writing.folder / "head" / WEIGHTS)}


def own_device(config: Config) -> str:
    """Return where a head runs in this process: on its GPU, if it has one and may use it."""
    return "cuda" if torch.cuda.is_available() and config.compute.device != "cpu" else "cpu"


def _compose(context: Context, writing: Writing) -> None:
    """Let the encoder itself compose the queries of val."""
    used = encoders.load_saved(context.run.local("stage1") / "encoder")
    rows = context.dataset.queries("val", both_orders=True)
    table = embedding.query_table(rows, context.paths())
    place = posixpath.join(writing.shared, QUERIES)
    embed_shards.embed_table(place, "queries", table, used, context.config)


def embed_all(context: Context, writing: Writing, used: Encoder, texts: list[str]) -> Stored:
    """Embed all images and `texts` with an encoder.

    Returns the features of the images.
    """
    given = {
        "images": image_table(context.own),
        "texts": pa.table({"key": pa.array(texts, pa.string())}),
    }
    images, _ = (
        embed_shards.embed_table(
            posixpath.join(writing.shared, unit), unit, table, used, context.config
        )
        for unit, table in given.items()
    )
    writing.record["counts"] = {
        "images": len(context.own.images),
        "texts": len(texts),
        "missing": len(images.report()),
    }
    return images


def image_table(dataset: Dataset) -> pa.Table:
    """Return all images as rows (key, path)."""
    return dataset.images.select(["image_id", "path"]).rename_columns(["key", "path"])


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


def _record(trained: training.Trained, settings: Stage1Config | Stage2Config) -> dict[str, Any]:
    """Return what stage.json has of a training."""
    return {
        "history": trained.history,
        "best_epoch": trained.best,
        "failures": trained.failures,
        "select_on": settings.select_on,
        "select_by": settings.select_by,
    }


def storage(context: Context, writing: Writing, *of: str) -> dict[str, str]:
    """Return where Ray Train keeps a stage's checkpoints: apart for each fingerprint, and `of`."""
    own = fingerprint(writing.fingerprint, *of) if of else writing.fingerprint
    return {
        "storage": context.run.path(training.STORAGE),
        "name": f"{writing.stage}-{own[:16]}",
    }


def _make_finetune(inputs: Any, config: Config, device: torch.device) -> Task[Any]:
    with scratch.folder() as copies:
        loaded = encoders.load_saved(local_copy(inputs["encoder"], copies))
    return FineTune(loaded.to(device), inputs["dataset"], inputs["paths"], config)


def _make_fuse(inputs: Any, config: Config, device: torch.device) -> Task[Any]:
    images, texts = (
        Stored.open(posixpath.join(inputs["features"], what)).features() for what in (IMAGES, TEXTS)
    )
    with scratch.folder() as copies:
        pseudo = pq.read_table(local_copy(inputs["pseudo"], copies) / "pseudo_triplets.parquet")
    caches = {}
    for need, source in inputs["caches"].items():
        with scratch.folder() as copies:  # an open cache outlives its files
            caches[need] = map_cache.read(local_copy(source, copies))
    extras = Extras(caches)
    head, _ = new_head(config, inputs["dim"], extras.shapes())
    if config.encoder.bundle:
        with scratch.folder() as copies:
            beginning.go_on(head, config, local_copy(inputs["encoder"], copies))
    return Fuse(
        *(head.to(device), inputs["dataset"], pseudo, images, texts, config),
        extras=extras,
        neighbours=hard_negatives.mined(config.stage2, inputs["mined"]),
    )
