"""The sections of the method: data, encoder, both stages, mining; one sentence a field."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from raycd.config.fields import (
    Compile,
    Cosine,
    Count,
    CountOrAuto,
    Fraction,
    Measure,
    Positive,
    Precision,
    Rate,
    Section,
    SelectOn,
    Text,
)


class SyntheticConfig(Section):
    """The demo data: garments drawn where data.format is synthetic."""

    train_images: Positive = 1600
    """Images drawn for each category's train split."""
    val_images: Positive = 1000
    """Images drawn for each category's val split, which is also its gallery."""
    train_triplets: Positive = 1500
    """Triplets written for each category's train split."""
    val_triplets: Positive = 500
    """Queries written for each category's val split."""
    size: Annotated[int, Field(ge=16, le=512)] = 64
    """Side of a drawn image, in pixels."""
    seed: Count = 0
    """Seed of the demo data; the run's own seed does not redraw it."""


class DataConfig(Section):
    """Which images and triplets are read, and what may be missing."""

    format: Literal[
        "fashioniq", "cirr", "circo", "genecis", "manifest", "catalogue", "synthetic"
    ] = "fashioniq"
    """Layout of the files under data.root; circo and genecis are for evaluation alone, a catalogue
    needs no triplets.
    """
    root: str = ""
    """Folder or URI of the data set; empty for synthetic, which draws its own."""
    categories: Annotated[list[Text], Field(min_length=1)] = ["dress", "shirt", "toptee"]
    """Fashion-IQ categories to read."""
    triplets: Text = "triplets.parquet"
    """Manifest format: file of the triplets (Parquet, CSV, JSON Lines), relative to data.root."""
    gallery: Text = "gallery.parquet"
    """Manifest format: likewise of the galleries, or a pattern of Parquet files with pictures."""
    title: Text = "title"
    """Attribute of images that is their title: a text to adapt to, never one to compose from."""
    max_missing: Fraction = 0.05
    """Largest share of images that may be missing or broken before the run ends with an error."""
    max_pixels: Positive = 50_000_000
    """Images with more pixels than this in their header are refused before they are decoded."""
    min_side: Positive = 8
    """Images with a shorter side than this many pixels count as broken."""
    captions: Literal["auto", "cleaned", "raw"] = "auto"
    """cleaned loses .?, and spaces at the ends; auto is raw for cirr, circo and genecis alone."""
    empty_captions: Literal["drop", "keep"] = "drop"
    """What an empty caption beside others becomes: nothing, or (Clip4Cir) " and c2"."""
    selection_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """Share of each category's train targets that the seed holds out, with all of their triplets,
    to choose epochs and settings on. Neither stage trains on them, and mining takes none of their
    images as a substitute.
    """
    synthetic: SyntheticConfig = SyntheticConfig()
    """The demo data."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if len(set(self.categories)) < len(self.categories):
            raise ValueError(f"data.categories names one twice: {', '.join(self.categories)}")
        return self


class EncoderConfig(Section):
    """The CLIP that encodes images and texts."""

    name: Text = "RN50x4-quickgelu"
    """open_clip model name, where local-dir:FOLDER and hf-hub:OWNER/MODEL are read as open_clip
    does, or the name of an entry point in raycd.encoders.
    """
    pretrained: str = "openai"
    """open_clip tag, path to safetensors weights, or folder of open_clip's form with weights in it;
    "demo" takes the CLIP of jobs/pretrain.py, unless `name` brings weights of its own.
    """
    bundle: str = ""
    """Folder of a bundle whose encoder this is, whatever `name` says, and from whose head stage 2
    goes on; stage2.head and its sizes have to be those of the bundle, unless it has no weights.
    """
    configs: str = ""
    """Folder of further open_clip model configurations (JSON), beside open_clip's own; an error for
    encoders of other packages.
    """
    preprocess: Literal["auto", "target_pad"] = "auto"
    """How images become pixels: as open_clip describes it for the model, or Clip4Cir's TargetPad,
    which is also taken where target_pad alone is set.
    """
    target_pad: Annotated[float, Field(ge=1.0)] = 1.25
    """TargetPad: images whose sides differ by this ratio or more are padded towards it."""

    reduced: bool = False
    """Decode JPEGs of four times the encoder's side or more at a half, a quarter or an eighth of
    their scale: faster, and features differ a little (docs/encoders.md).
    """

    @model_validator(mode="before")
    @classmethod
    def _padded(cls, values: Any) -> Any:
        # Settings written before there was a choice always padded.
        if isinstance(values, dict) and "target_pad" in values and "preprocess" not in values:
            return {**values, "preprocess": "target_pad"}
        return values

    @property
    def padding(self) -> float | None:
        """Return the ratio of TargetPad; None where it is not used."""
        return self.target_pad if self.preprocess == "target_pad" else None


class PretrainConfig(Section):
    """Pre-training of the demo's small CLIP on drawn images with generic captions."""

    images: Positive = 6000
    """Number of drawn images."""
    epochs: Positive = 6
    """Passes over the images."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Image-text pairs in a batch."""
    lr: Rate = 1e-3
    """Peak learning rate of AdamW, with warm-up and cosine decay."""
    seed: Count = 0
    """Seed of the drawing and of the weights."""
    cache: Text = "~/.cache/raycd/pretrained"
    """Folder where pre-trained weights are kept, by a hash of these settings."""


class Finetuning(Section):
    """How an encoder is trained: what stage 1 and the adaptation to titles have in common."""

    finetune: Literal["text", "image", "both", "lora", "none"] = "both"
    """Which encoders train; none keeps the pre-trained CLIP (Table 2, w/o FT), lora trains low-rank
    adapters of both, which are merged into them at the end.
    """
    lora_rank: Positive = 8
    """LoRA: rank of what is added to a layer's weight."""
    lora_alpha: Positive = 16
    """LoRA: factor of what is added, divided by the rank."""
    batch_size: Annotated[int, Field(ge=2)] = 64
    """Triplets, or pairs of image and text, in a batch, over all workers."""
    drop_last: bool = False
    """Leave out the last, smaller batch of an epoch, unless it is the only one (Clip4Cir does)."""
    lr: Rate = 2e-6
    """Learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 1e-2
    """Decoupled weight decay of AdamW."""
    adam_eps: Rate = 1e-7
    """Epsilon of AdamW (Clip4Cir's)."""
    warmup: Fraction = 0.0
    """Share of all steps over which the learning rate rises from zero."""
    decay: Literal["none", "cosine"] = "none"
    """How the learning rate falls after the warm-up."""
    clip_norm: Annotated[float, Field(ge=0.0)] = 0.0
    """Gradients of a greater norm are scaled down to it; 0: none."""
    explosion: Annotated[float, Field(ge=0.0)] = 10.0
    """Stop where the median loss of 10 steps is more than so many times what it began with, and
    what guessing would give; 0: never.
    """
    precision: Precision = "auto"
    """Arithmetic of the encoders: bf16 is autocast, weights stay fp32; auto is bf16 on GPUs that
    have it, fp32 elsewhere.
    """
    compile: Compile = "auto"
    """Compile the encoders (torch.compile); auto does on GPUs, where the rest of the stage takes so
    long that it repays a minute.
    """
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    chunk: Count = 0
    """Rows of a batch that a worker encodes at a time, by cached gradients (GradCache): large
    batches in the memory of small ones, for one more forward pass; 0: the whole batch.
    """
    decode_on: Literal["worker", "cluster"] = "worker"
    """Where images are decoded: by each training worker and its processes, or by tasks on any CPUs
    of the cluster, for which there are no `loader_workers` and no cache.
    """
    loader_workers: CountOrAuto = "auto"
    """Processes that decode images beside each training worker; 0 decodes in the worker; auto is
    its share of the machine's CPUs beside a GPU, else 0.
    """
    cache_mib: CountOrAuto = "auto"
    """Memory of a machine's training workers together for decoded images, in MiB, which later
    epochs reuse; auto is half of what is available.
    """


class Stage1Config(Finetuning):
    """Fine-tuning of CLIP on triplets (paper 3.2.1, eqs 2 to 4)."""

    epochs: Count = 20
    """Passes over the train triplets."""
    logit_scale: Rate = 100.0
    """Factor of the cosines before the softmax; the paper's tau = 100."""
    mask_equal_targets: bool = True
    """Triplets of the same target are not each other's negatives; false: they are (Clip4Cir)."""
    select_on: SelectOn = "selection"
    """How the best epoch is chosen: by recall on selection or val (as peers do), or the last."""
    select_by: Annotated[list[Measure], Field(min_length=1)] = ["recall@10"]
    """What chooses it there: the mean of these (Clip4Cir: recall@10 and 50; CIRR: all seven)."""


class EmbedConfig(Section):
    """Running the frozen encoders once over all images and texts (eq. 8)."""

    batch_size: Positive = 64
    """Images or texts encoded at once."""
    precision: Precision = "auto"
    """Arithmetic of the encoders, whose weights are held in it; auto as in stage1."""
    compile: Compile = "auto"
    """Compile the encoders; auto does on GPUs, from 600,000 images or texts a worker on."""
    map_size: Count = 0
    """Heads that need maps: side that larger maps are pooled to before they are cached; 0: none."""


class MineConfig(Section):
    """Similarity-based pseudo triplets (3.2.3, eq. 9).

    thresholds, eps_low, eps_high, s_max, alpha, replace and rare_texts filter, the rest mines.
    """

    neighbours: Positive = 64
    """Neighbours kept for each train image, with their similarities."""
    floor: Cosine = 0.8
    """Loosest similarity that is kept in the tables; eps_low cannot be below it."""
    pool: Literal["all", "category"] = "all"
    """Where substitutes come from: all train images (the paper), or the triplet's category."""
    batch_size: Positive = 1024
    """Query images searched at once by a thread or a GPU; 4,096 at most."""
    worker_mib: Positive = 4096
    """Memory of a mining worker for the images it searches, in MiB; a larger pool is sharded."""
    index: Literal["flat", "hnsw", "ivf"] = "flat"
    """How neighbours are searched: flat is exact; hnsw and ivf are for millions and miss some."""
    hnsw_m: Annotated[int, Field(ge=2, le=512)] = 32
    """HNSW: links of an image in the graph (M)."""
    hnsw_ef: Positive = 256
    """HNSW: candidates that a search keeps (efSearch); more finds more."""
    ivf_lists: Count = 0
    """IVF: lists that a shard is divided into (nlist); 0 means 4 times the root of its images."""
    ivf_probes: Positive = 32
    """IVF: lists that a search visits (nprobe); more finds more."""
    recall_sample: Positive = 1000
    """HNSW, IVF: query images, drawn by the seed, that are also searched exactly for the recall."""
    thresholds: Literal["absolute", "quantile"] = "absolute"
    """Meaning of eps_low, eps_high and alpha: cosines, or quantiles (0 to 1) of what was mined."""
    eps_low: Cosine = 0.90
    """Lower similarity threshold of a substitute (inclusive)."""
    eps_high: Cosine = 0.995
    """Upper similarity threshold of a substitute (inclusive)."""
    s_max: Positive = 4
    """Most substitutes for one image."""
    alpha: Cosine = 0.6
    """A pseudo triplet is kept if stage 1's matching score of it is greater than this."""
    replace: Literal["both", "reference", "target"] = "both"
    """Whose substitutes make pseudo triplets: both sides (the paper), or those of one alone."""
    rare_texts: Count = 0
    """Pseudo triplets only of texts that stand in at most so many train triplets; 0: of all."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name in ("eps_low", "eps_high", "alpha"):
            if self.thresholds == "quantile" and getattr(self, name) < 0:
                raise ValueError(
                    f"mine.{name} {getattr(self, name)} is not a quantile: "
                    f"give a share from 0 to 1, or set mine.thresholds absolute"
                )
        if self.eps_low > self.eps_high:
            raise ValueError(
                f"mine.eps_low {self.eps_low} is greater than mine.eps_high {self.eps_high}: "
                f"give eps_low at most {self.eps_high}, or eps_high at least {self.eps_low}"
            )
        if self.thresholds == "absolute" and self.eps_low < self.floor:
            raise ValueError(
                f"mine.eps_low {self.eps_low} is below mine.floor {self.floor}, the loosest "
                f"similarity in the tables: give eps_low at least {self.floor}, "
                f"or lower mine.floor (mines again)"
            )
        if self.s_max > self.neighbours:
            raise ValueError(
                f"mine.s_max {self.s_max} is greater than mine.neighbours {self.neighbours}: "
                f"give s_max at most {self.neighbours}, or keep more neighbours (mines again)"
            )
        return self


class Stage2Config(Section):
    """Training of the fusion head on cached features (3.2.2, eqs 5 to 7)."""

    head: Text = "clip_cd"
    """Name of the fusion head, in raycd.model.fusion."""
    epochs: Count = 100
    """Passes, those over pseudo triplets included."""
    batch_size: Annotated[int, Field(ge=2)] = 1024
    """Triplets in a batch, over all workers."""
    drop_last: bool = False
    """Leave out the last, smaller batch of an epoch, unless it is the only one (Clip4Cir does)."""
    mask_equal_targets: bool = True
    """Triplets of the same target are not each other's negatives; false: they are (Clip4Cir)."""
    soft_targets: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the probability that a batch's targets get by their likeness to the right one."""
    hard_negatives: Count = 0
    """Further negatives of a triplet: the images most like its target, as mining found them."""
    lr: Rate = 2e-5
    """Learning rate of Adam."""
    decay: Literal["none", "cosine"] = "none"
    """How the learning rate falls."""
    clip_norm: Annotated[float, Field(ge=0.0)] = 0.0
    """Gradients of a greater norm are scaled down to it; 0: none."""
    explosion: Annotated[float, Field(ge=0.0)] = 10.0
    """When a loss that explodes stops the stage, as in stage1."""
    logit_scale: Rate = 100.0
    """Factor of the cosines before the softmax."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """Dropout inside the head, but not in CLIP-CD's bilinear branch."""
    bilinear_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """CLIP-CD: dropout inside the bilinear branch, which has none in the paper."""
    bilinear_dim: Positive = 64
    """K of eqs 5 to 7: size of the projections of the outer product; less than feature size D."""
    projection_dim: Count = 0
    """Combiner: size of each modality's projection; 0 means 4 D."""
    hidden_dim: Count = 0
    """Combiner: size of the hidden layers; 0 means 8 D."""
    precision: Precision = "auto"
    """Arithmetic of the head in training: bf16 is autocast, weights and loss stay fp32; auto as in
    stage1.
    """
    compile: Compile = "auto"
    """Compile the head and its loss, as stage1.compile; lincir, hffca and clvc_net never are."""
    k: Positive = 5
    """Epochs over original triplets before each epoch over pseudo triplets."""
    pseudo_weight: Literal["one", "score"] = "one"
    """What a pseudo triplet counts in the loss: score is the share of them that match no better."""
    pseudo: bool = True
    """Use pseudo triplets; false is Table 2's w/o Pseudo Data."""
    select_on: SelectOn = "selection"
    """How the best epoch is chosen: by recall on selection or val (as peers do), or the last."""
    select_by: Annotated[list[Measure], Field(min_length=1)] = ["recall@10"]
    """What chooses it there, as in stage1."""
