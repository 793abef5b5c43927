"""The types of requests and answers over HTTP, for service and client (version 1, under /v1)."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from raycd.filters import Filter, Name, Number

Text = Annotated[str, StringConstraints(strip_whitespace=True)]
Weight = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False), Number]


class _RequestPart(BaseModel):
    """A request or a part of one: an unknown field is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _ResponsePart(BaseModel):
    """An answer or a part of one: a client ignores the fields of a later version."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class SearchRequest(_RequestPart):
    """An image, a text, or both. The image is given in one way; in a form, as the file `image`."""

    image_id: Name | None = None
    """The reference is this image of the gallery: no image is uploaded and none is encoded."""
    image_base64: Annotated[str, Field(min_length=1)] | None = None
    """The reference image's file in base64."""
    image_url: Annotated[Text, Field(min_length=1, max_length=4096)] | None = None
    """The reference image is fetched from here, where the service allows it (https only)."""
    text: Text = ""
    """What should differ: is blue, with long sleeves. Without an image, what is looked for."""
    negative_text: Text = ""
    """What the results should not look like."""
    image_weight: Weight = 1.0
    """1 is the model's own balance; more draws the results towards the image, 0 takes it out."""
    text_weight: Weight = 1.0
    """Likewise for the text."""
    top_k: Annotated[Annotated[int, Field(ge=1)] | None, Number] = None
    """Number of results; the service's default where absent, and at most its limit."""
    offset: Annotated[int, Field(ge=0), Number] = 0
    """Number of first results to leave out: the next page."""
    category: list[Name] = []
    """Only images of one of these categories; none: of all."""
    attributes: dict[Name, Filter] = {}
    """Only images with one of these values of each attribute, or one that fits a condition:
    {"colour": ["blue", "navy"], "price": {"gte": 10, "lt": 50}, "brand": {"not": ["none"]}}.
    """
    among: list[Name] = []
    """Only these images of the gallery; none: all of them."""
    exclude_reference: bool = False
    """Leave the image of the gallery that `image_id` names out of the results."""
    exact: bool = False
    """Compare with every image, whatever the index: slower, and never misses one."""
    rerank_depth: Annotated[Annotated[int, Field(ge=0)] | None, Number] = None
    """First candidates that a model which re-ranks puts in its own order; 0: none. The model's
    default where absent, and at most the service's limit.
    """

    @model_validator(mode="after")
    def _one_image(self) -> Self:
        given = [
            name
            for name in ("image_id", "image_base64", "image_url")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise ValueError(
                f"the image is given in {len(given)} ways ({', '.join(given)}): give one of them"
            )
        return self


class GalleryFilters(_RequestPart):
    """What a page of the gallery shows; in its address, `attributes` is JSON."""

    category: list[Name] = []
    """Only images of one of these categories; none: of all."""
    attributes: dict[Name, Filter] = {}
    """As of a search."""


class BatchRequest(_RequestPart):
    """Several searches, each of which succeeds or fails by itself."""

    searches: Annotated[list[Any], Field(min_length=1)]
    """Bodies of /v1/search; a malformed one fails alone."""


class GalleryImage(_RequestPart):
    """An image for the gallery: a picture, a feature, or both. In a form it is the file `image`."""

    image_base64: Annotated[str, Field(min_length=1)] | None = None
    """The picture's file in base64."""
    feature: list[Annotated[float, Field(allow_inf_nan=False, strict=True)]] | str | None = None
    """Its feature, if known, as `Encoder.encode_images` returns it, not normalised: numbers, or
    base64 of little-endian float32. Without it the service encodes the picture.
    """
    encoder: Annotated[str, Field(min_length=12, max_length=64)] | None = None
    """Fingerprint of the feature's encoder, as in /v1/info; a feature needs it."""
    category: list[Name] = []
    """The categories that the image belongs to."""
    attributes: dict[Name, Name] = {}
    """{"colour": "blue"}."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.feature is not None and self.encoder is None:
            raise ValueError("a feature needs `encoder`, the fingerprint of its encoder")
        return self


class ImportLine(GalleryImage):
    """One line of /v1/gallery:import."""

    image_id: Name


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

    results: list[SearchResult]
    total: int
    """Number of images that pass the filters."""
    model: ModelInfo
    index: IndexInfo
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
    top_k: int
    offset: int
    rerank_depth: int = 0
    filters: int = 0
    """Categories, values and images that a search may name; 0: an older service does not say."""
    batch: int
    page: int
    import_lines: int
    attributes: int
    """Of an image."""


class Info(_ResponsePart):
    """The properties of the service that a client, such as the page, needs for its requests."""

    version: str
    model: ModelInfo
    index: IndexInfo
    limits: Limits
    default_top_k: int
    image_url: bool
    """Whether the reference may be given by URL."""
    live: bool = False
    """Whether images may be added to the gallery and removed."""
    bundle: BundleInfo | None = None
    """The bundle that this replica serves, and why it refused another one."""
    second: SecondInfo | None = None
    """The second model; null where there is none."""
    categories: dict[str, int]
    """Number of images of each category."""
    attributes: dict[str, dict[str, int]]
    """Number of images of the most frequent values of each attribute."""
    example_texts: list[str]
    """Texts of the model's training, to try."""


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
    unreachable, tls, timeout, status.
    """
    errors: list[FieldError] | None = None
    """The wrong fields."""


for _model in (BatchItem, ImportItem):
    _model.model_rebuild()
