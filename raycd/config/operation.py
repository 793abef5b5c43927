"""The sections around the method: sweeps, evaluation, index, machines, record."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from typing_extensions import TypedDict

from raycd.config.fields import (
    Alias,
    AliasOrNone,
    Count,
    IndexKind,
    Positive,
    Protocol,
    Rate,
    Section,
    Text,
)


class TuneConfig(Section):
    """Search of the augmentation by tune/sweep.py."""

    samples: Positive = 32
    """Trials of a sweep."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """How settings are proposed: Optuna's TPE, at random, or a grid of tune.grid_points values."""
    grid_points: Annotated[int, Field(ge=2)] = 3
    """Grid: values of each range."""
    scheduler: Literal["asha", "none"] = "asha"
    """What ends poor trials early: ASHA on the metric, or nothing."""
    metric: Text = "recall@10"
    """What trials are judged by on the selection split: recall@K (K of evaluate.ks or 10), or
    CATEGORY/recall@K.
    """
    epochs: Count = 0
    """Length of a trial: the triplets that the default settings see in this many epochs; 0 means
    stage2.epochs.
    """
    grace: Count = 0
    """ASHA: least length of a trial, likewise; 0 means stage2.k + 1, the default's first epoch of
    pseudo triplets.
    """
    reduction: Annotated[int, Field(ge=2)] = 4
    """ASHA: one trial in this many continues at each rung."""
    concurrent: Count = 0
    """Trials at a time; 0 means as many as the cluster has room for."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the heads of trials; auto is bf16 on GPUs and on CPUs with AMX, else fp32."""
    cpus_per_trial: Rate = 1.0
    """CPUs that Ray reserves for a trial, and its threads."""
    gpus_per_trial: Rate = 0.25
    """GPUs that Ray reserves for a trial, a fraction included, where the device is a GPU."""
    finalists: Positive = 3
    """Best trials that are trained in full, beside the default, before one is named the winner."""
    final_seeds: Positive = 2
    """Seeds with which each finalist is trained; the mean on the selection split decides."""
    seeds: Annotated[int, Field(ge=2)] = 5
    """Seeds with which the winner and the default are trained and evaluated on val in the end."""


class TrainConfig(Section):
    """How the trainings of both stages survive what machines do."""

    checkpoint_minutes: Annotated[float, Field(ge=0.0)] = 10.0
    """Minutes between two checkpoints inside of an epoch; 0: only at the ends of epochs."""
    checkpoint_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.05
    """Share of the time that may be spent on writing checkpoints at the ends of epochs: of short
    epochs only some are written, the best and the last always. 1: each is.
    """
    max_failures: Count = 1
    """Failures of workers after which a stage goes on by itself; a machine that is taken back with
    notice does not count.
    """


class EvaluateConfig(Section):
    """Recall on the val split."""

    protocol: Protocol = "original"
    """Which gallery is searched and whether the reference stays in it (docs/protocols.md)."""
    ks: Annotated[list[Positive], Field(min_length=1)] = [10, 50]
    """Ranks at which recall is measured."""
    map_ks: list[Positive] = []
    """Ranks of mAP@k, for data sets of several right targets (CIRCO: 5, 10, 25, 50)."""
    captions: Literal["joined", "both_orders"] = "joined"
    """joined asks each query once, "C1 and c2"; both_orders a second time, "C2 and c1" (CoSMo)."""
    rerank_depth: Count = 200
    """First candidates that a head which re-ranks, such as dcnet, orders anew; 0: none."""
    batch_size: Positive = 1024
    """Queries scored at once."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, ks in (("ks", self.ks), ("map_ks", self.map_ks)):
            if len(set(ks)) < len(ks):
                raise ValueError(f"evaluate.{name} names a rank twice: {', '.join(map(str, ks))}")
        return self


class IndexConfig(Section):
    """The index of a served gallery. Its recall is measured when it is built (docs/serving.md)."""

    kind: Literal["auto", IndexKind] = "auto"
    """flat is exact; half is flat in half of the bytes, on the disk; ivf and hnsw are for more
    images, sq8 and rabitq for more than memory holds; auto is flat up to index.flat_up_to, then
    ivf, and half, sq8 or rabitq where index.memory_mib asks for them.
    """
    memory_mib: Count = 0
    """Memory of the index in a replica, in MiB, without what is read from the disk; 0: no bound."""
    flat_up_to: Count = 20_000
    """Auto: most images of a flat index."""
    recall: Annotated[float, Field(gt=0.0, le=1.0)] = 0.997
    """Share of the true first 10 that a search must find, on a sample; flat and half find all."""
    sample: Positive = 1000
    """Queries of that sample."""
    ivf_lists: Count = 0
    """IVF, SQ8, RaBitQ: lists of the gallery (nlist); 0 means 4 times the root of its images."""
    ivf_train: Annotated[int, Field(ge=39)] = 64
    """The same: training images for each list, drawn by the seed; FAISS wants at least 39."""
    hnsw_m: Annotated[int, Field(ge=2, le=512)] = 32
    """HNSW: links of an image in the graph (M)."""
    hnsw_build_ef: Positive = 128
    """HNSW: candidates for the links of an image (efConstruction); more is better and slower."""


class Elastic(TypedDict):
    """Least and most workers of a training, whose number changes with the cluster."""

    min: Positive
    max: Positive


def _kind_of_workers(value: object) -> str:
    return "elastic" if isinstance(value, dict) else "fixed"


def _ordered(value: Elastic) -> Elastic:
    if value["min"] > value["max"]:
        raise ValueError(
            f"compute.train_workers has a min of {value['min']} and a max of {value['max']}: "
            f"give a min of at most {value['max']}"
        )
    return value


Workers = Annotated[
    Annotated[Positive, Tag("fixed")]
    | Annotated[Elastic, AfterValidator(_ordered), Tag("elastic")],
    Discriminator(_kind_of_workers),
]


class ComputeConfig(Section):
    """Devices, workers and threads."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes the GPUs that the cluster has."""
    train_workers: Workers = 1
    """Ray Train workers of a stage, or {"min": 1, "max": 4}: as many as the cluster has room for at
    the time.
    """
    embed_workers: Positive = 2
    """Ray Data actors that encode."""
    mine_workers: Count = 0
    """Tasks that mine at a time; 0: one a machine for neighbours, one a CPU for scores."""
    cpus_per_worker: Annotated[float, Field(gt=0.0)] = 0.5
    """CPUs that Ray reserves for a worker; leave some for reading."""
    gpus_per_worker: Annotated[float, Field(gt=0.0)] = 1.0
    """GPUs that Ray reserves for a worker, where the device is a GPU; a fraction where one worker
    trains at most.
    """
    threads: Count = 0
    """Threads of torch and FAISS in a worker; 0 shares the machine's cores among the workers."""

    @property
    def most_train_workers(self) -> int:
        """Return how many workers of a stage there can be."""
        wanted = self.train_workers
        return wanted if isinstance(wanted, int) else wanted["max"]


class TrackingConfig(Section):
    """The MLflow record."""

    uri: str = ""
    """MLflow tracking URI; empty means sqlite:///<runs>/mlflow.db."""
    experiment: Text = "raycd"
    """MLflow experiment."""
    model: Text = "raycd"
    """Registered model that the bundle becomes a version of."""
    enabled: bool = True
    """False keeps no record."""
    every_steps: Count = 50
    """Steps of a training between two of its losses in the record; 0: only each epoch's."""
    machine_seconds: Count = 10
    """Seconds between two measurements of every machine's CPUs, memory, disk, network and GPUs in
    the record of the stage that runs; 0: none.
    """


class RegistryConfig(Section):
    """Aliases of the registered model, which a better version takes."""

    alias: AliasOrNone = ""
    """Alias that the new version gets where it is better than the champion; empty sets none."""
    champion: Alias = "champion"
    """Alias of the version in use, with which it is compared."""
    metric: Text = "recall@10"
    """What they are compared by, as tune.metric, on val: its difference's 95% interval over queries
    has to lie above zero.
    """

    @model_validator(mode="after")
    def _free(self) -> Self:
        for name, alias in (("alias", self.alias), ("champion", self.champion)):
            if re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
                raise ValueError(
                    f"registry.{name} is {alias}, which MLflow keeps for versions: give another"
                )
        return self
