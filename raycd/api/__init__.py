"""The types of answers over HTTP (version 1, under /v1); those of requests are its, too."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from raycd.api.requests import BatchRequest as BatchRequest
from raycd.api.requests import Boost as Boost
from raycd.api.requests import EmbedBatchRequest as EmbedBatchRequest
from raycd.api.requests import GalleryFilters as GalleryFilters
from raycd.api.requests import GalleryImage as GalleryImage
from raycd.api.requests import ImportLine as ImportLine
from raycd.api.requests import QueryRequest as QueryRequest
from raycd.api.requests import SearchRequest as SearchRequest
from raycd.api.requests import WeightedImage as WeightedImage


class _ResponsePart(BaseModel):
    """An answer or a part of one: a client ignores the fields of a later version."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Written(_ResponsePart):
    """A change of the gallery that is on the disk."""

    image_id: str
    version: int
    """Version of the gallery after the change; a search with this `min_version` sees it."""
    created: bool = False
    """Whether there was no such image before."""


class ImportItem(_ResponsePart):
    """The result of one line of an import: `version` or `problem`."""

    line: int
    """From 1."""
    image_id: str | None = None
    status: int
    """The status that a PUT of the image alone would have had."""
    version: int | None = None
    problem: Problem | None = None


class Explanation(_ResponsePart):
    """Cosine of the image with each half of the query; null where the query lacks the half."""

    image: float | None
    text: float | None


class Item(_ResponsePart):
    """An image of the gallery."""

    image_id: str
    category: str
    """The first category that the image belongs to; empty where it has none."""
    attributes: dict[str, str]
    thumbnail: str
    """Path of its small picture, relative to the service."""


class SearchResult(Item):
    """A found image."""

    score: float
    """Cosine of the query and the image, -1 to 1."""
    relative_score: float
    """Standard deviations of `score` above the mean of the whole gallery: comparable between
    queries. 0 where the gallery has one image, or all are alike.
    """
    rerank_score: float | None = None
    """What decided on the order where the image was re-ranked: `score` and the head's own."""
    boosted_score: float | None = None
    """What decided on the order where the search has a boost."""
    explanation: Explanation


class IndexInfo(_ResponsePart):
    """The searched index."""

    kind: str
    """flat, half, ivf, hnsw, sq8 or rabitq; milvus: a search engine has the gallery."""
    size: int
    """Number of images."""
    version: int
    """Version of the searched gallery, which grows with each change."""
    lag_s: float = 0.0
    """Seconds since the replica had all that was in the database: later changes may be missing."""
    recall: float | None = None
    """Share of the exact first 10 that it finds, measured on a sample when it was built; null: a
    search engine does not tell.
    """


class ModelInfo(_ResponsePart):
    """The model, and its metrics after the training."""

    preset: str
    encoder: str
    fingerprint: str
    """Prefix of the encoder's hash."""
    head: str
    bundle: str = ""
    """Prefix of its bundle's digest, as the header Raycd-Model of an answer."""
    protocol: str
    """Evaluation protocol of the metrics."""
    rerank_depth: int = 0
    """First candidates that it re-ranks where a search does not say; 0: it re-ranks none."""
    metrics: dict[str, Any]


class SearchResponse(_ResponsePart):
    """Results, best first."""

    query_id: str = ""
    """A random name of this answer, also in the header Raycd-Query-Id; empty: an older service."""
    results: list[SearchResult]
    total: int
    """Number of images that pass the filters."""
    model: ModelInfo
    index: IndexInfo
    history: str = ""
    """This query and those before it, for the `reference` of a later search, where it was asked
    for.
    """
    warnings: list[str]
    """What differs from the request, such as a truncated text, a re-ranking that was left out, and
    filters that match no image.
    """
    timings: dict[str, float]
    """Milliseconds, as in Server-Timing: read, decode (with fetching), wait, encode, search, rerank
    where the model does, total.
    """


class BatchItem(_ResponsePart):
    """The result of one search of a batch: a response or a problem."""

    status: int
    """The status that the search alone would have had."""
    response: SearchResponse | None = None
    problem: Problem | None = None


class BatchResponse(_ResponsePart):
    """The results in the order of the searches."""

    items: list[BatchItem]


class Embedding(_ResponsePart):
    """The vectors of a query."""

    query: list[float]
    """What a search compares with the gallery's images; its length is 1."""
    image: list[float] | None
    """The encoder's feature of the image, not normalised, as the `feature` of an image for the
    gallery; of several images their weighted mean, and null where there is none.
    """
    text: list[float] | None
    """The encoder's feature of the text, not normalised; null where there is none."""
    encoder: str
    """Fingerprint of the encoder."""
    head: str
    """What has fused image and text."""
    warnings: list[str]
    """As of a search."""
    timings: dict[str, float]
    """Milliseconds, as of a search."""


class EmbedItem(_ResponsePart):
    """The result of one query of a batch: an embedding or a problem."""

    status: int
    """The status that the query alone would have had."""
    embedding: Embedding | None = None
    problem: Problem | None = None


class EmbedBatchResponse(_ResponsePart):
    """The results in the order of the queries."""

    items: list[EmbedItem]


class GalleryPage(_ResponsePart):
    """A page of the gallery, in its order."""

    items: list[Item]
    total: int
    """Number of images that pass the filters."""
    offset: int
    version: int = 0
    """Version of the gallery."""
    warnings: list[str] = []
    """Filters that match no image."""


class BundleInfo(_ResponsePart):
    """Which bundle a replica serves."""

    digest: str
    """Prefix of its manifest's hash."""
    created: str
    refused: str | None = None
    """Why the replica refused the bundle that it should change to; null where it did not."""


class SecondInfo(_ResponsePart):
    """A second model beside the first."""

    bundle: str | None
    """Prefix of its bundle's digest; null until it is loaded, and where it cannot be."""
    shadow: float
    """Share of the searches that it answers, too, unseen."""
    users: float
    """Share of the users whom it answers."""
    refused: str | None = None
    """Why it cannot be loaded; the first answers all."""


class Limits(_ResponsePart):
    """The limits of the service."""

    body_bytes: int
    image_pixels: int
    image_min_side: int
    formats: list[str]
    text_characters: int
    images: int = 1
    """Of a search."""
    top_k: int
    offset: int
    rerank_depth: int = 0
    filters: int = 0
    """Categories, values and images that a search may name; 0: an older service does not say."""
    batch: int
    page: int
    import_lines: int
    events: int = 0
    """Of one /v1/events."""
    attributes: int
    """Of an image."""


class NumberRange(_ResponsePart):
    """The numbers that an attribute's values are; other values of it do not count."""

    min: float
    max: float


class Info(_ResponsePart):
    """The properties of the service that a client, such as the page, needs for its requests."""

    version: str
    gallery: str = "default"
    """Name of the gallery that this is about."""
    model: ModelInfo
    index: IndexInfo
    limits: Limits
    default_top_k: int
    image_url: bool
    """Whether the reference may be given by URL."""
    live: bool = False
    """Whether images may be added to the gallery and removed."""
    events: bool = False
    """Whether it takes events on what it found."""
    bundle: BundleInfo | None = None
    """The bundle that this replica serves, and why it refused another one."""
    second: SecondInfo | None = None
    """The second model; null where there is none."""
    categories: dict[str, int]
    """Number of images of each category."""
    attributes: dict[str, dict[str, int]]
    """Number of images of the most frequent values of each attribute."""
    ranges: dict[str, NumberRange] = {}
    """Smallest and largest number of each attribute that has numbers; of a search engine's gallery,
    of its most frequent values.
    """
    example_texts: list[str]
    """Texts of the model's training, to try."""


class NamedGallery(_ResponsePart):
    """One of the service's galleries."""

    name: str
    path: str
    """What its paths begin with, relative to the service's URL: v1 of the default one."""
    live: bool
    """Whether images may be added and removed."""
    size: int = 0
    """Images that can be found."""
    bundle: str | None = None
    """Prefix of its bundle's digest; null where it is not loaded."""
    encoder: str | None = None
    refused: str | None = None
    """Why it is not loaded, so that its paths answer 503; null where it is."""


class GalleryList(_ResponsePart):
    """The galleries that whoever asks may ask, the default one first."""

    galleries: list[NamedGallery]


class Health(_ResponsePart):
    """Whether the service runs (/healthz), or answers (/readyz)."""

    status: str = "ok"
    replicas: int | None = None
    """Replicas that answer."""
    age_s: float | None = None
    """Age of this answer in seconds: requests within a second share one."""


class FieldError(_ResponsePart):
    """The mistake in a field of a request."""

    field: str
    message: str


UNKNOWN_GALLERY, OTHER_GALLERY = "no_gallery", "other_gallery"


class Problem(_ResponsePart):
    """A problem document of RFC 9457 of type about:blank: the title is the phrase of the status."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    """What is wrong, what was expected and what to do, for humans."""
    limit: str | None = None
    """The setting of the service that the request exceeds."""
    reason: str | None = None
    """Why an image is refused: empty, not_an_image, truncated, too_small, too_large, missing; or
    why its URL was not fetched: malformed, scheme, credentials, port, address, redirect, encoding,
    unreachable, tls, timeout, status; no_gallery where the service has none of this name,
    other_gallery where the API key is for others.
    """
    errors: list[FieldError] | None = None
    """The wrong fields."""


for _model in (BatchItem, EmbedItem, ImportItem):
    _model.model_rebuild()
