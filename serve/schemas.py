"""The types of the service: its arguments, and what goes over HTTP."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class ServeArgs(BaseModel):
    """Arguments of `serve.app:build`: `args` in config.yaml, options of `python serve/app.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    bundle: Annotated[str, Field(min_length=1)] = "runs/demo/bundle"
    """Folder of the bundle, seen from every node that runs a replica; best absolute."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Copies of the model."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of torch and FAISS in a replica; 0 shares the node's cores, less one, among the replicas."""
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """CPUs that Ray reserves for a replica."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray reserves for a replica; above 0 the model runs there."""
    max_batch_size: Annotated[int, Field(ge=1)] = 32
    """Queries that the model answers at once."""
    batch_wait_s: Annotated[float, Field(ge=0)] = 0.01
    """Seconds that the first query of a batch waits for others."""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds after which a search is given up."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 20_000_000
    """Larger requests are refused before they are read."""


class SearchResult(BaseModel):
    """An image found."""

    image_id: str
    score: float = Field(description="cosine of the query and the image, -1 to 1")
    category: str = Field(description="the first category that the image belongs to")


class IndexInfo(BaseModel):
    """The index that was searched."""

    kind: str
    size: int = Field(description="images in it")


class ModelInfo(BaseModel):
    """The model that answers, and how good it was when it was trained."""

    preset: str
    encoder: str
    fingerprint: str = Field(description="begin of the encoder's hash")
    head: str
    index: IndexInfo
    protocol: str = Field(description="evaluation protocol of the metrics")
    metrics: dict[str, Any]


class SearchResponse(BaseModel):
    """Results, best first."""

    results: list[SearchResult]
    text_truncated: bool = Field(description="the text was longer than the model reads, its end was cut off")
    model: ModelInfo


class Health(BaseModel):
    """The service is up: its model has answered a query of its own."""

    status: str = "ok"


class FieldError(BaseModel):
    """What is wrong with one field of a request."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457 problem document, application/problem+json. Of type about:blank, so the title is the status's phrase."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    reason: str | None = Field(None, description="why an image is refused: empty, not_an_image, truncated, ...")
    errors: list[FieldError] | None = Field(None, description="the fields that are wrong")
