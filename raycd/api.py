"""What goes over HTTP: the types that the service answers with and the client reads (version 1,
under /v1).
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)


def _number(value: object) -> object:
    if isinstance(value, bool):  # Python counts them among the numbers
        raise ValueError(f"got {str(value).lower()}, expected a number")
    return value


Number = BeforeValidator(_number)

Text = Annotated[str, StringConstraints(strip_whitespace=True)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=512)]
Weight = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False), Number]


class _Asked(BaseModel):
    """A request: a field that nobody knows is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class _Told(BaseModel):
    """A part of an answer. Fields of a later version are ignored by today's client."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class SearchRequest(_Asked):
    """An image, a text, or both. The image is given in one way only; in a form it is the file
    `image`.
    """

    image_id: Name | None = None
    """The reference is this image of the gallery: no image is uploaded and none is encoded."""
    image_base64: Annotated[str, Field(min_length=1)] | None = None
    """The reference image's file in base64."""
    image_url: Annotated[Text, Field(min_length=1, max_length=4096)] | None = None
    """The reference image is fetched from here, where the service allows it (https only)."""
    text: Text = ""
    """What should differ: is blue, with long sleeves. Alone, without an image, it describes what is
    looked for.
    """
    negative_text: Text = ""
    """What the results should not look like."""
    image_weight: Weight = 1.0
    """1 leaves the model's own balance; more draws the results towards the image, 0 takes the image
    alone out.
    """
    text_weight: Weight = 1.0
    """Likewise for the text."""
    top_k: Annotated[Annotated[int, Field(ge=1)] | None, Number] = None
    """Results wanted; the service's default where absent, and at most its limit."""
    offset: Annotated[int, Field(ge=0), Number] = 0
    """Results left out at the beginning: the next page."""
    category: list[Name] = []
    """Only images of one of these categories; none: of all."""
    attributes: dict[Name, list[Name]] = {}
    """Only images with one of these values in each of these attributes: {"colour": ["blue",
    "navy"]}.
    """
    exclude_reference: bool = False
    """Leave the image of the gallery that `image_id` names out of the results."""
    exact: bool = False
    """Compare with every image, whatever the index: slower, and never misses one."""

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


class BatchRequest(_Asked):
    """Several searches. Each succeeds or fails by itself."""

    searches: Annotated[list[Any], Field(min_length=1)]
    """Each as the body of /v1/search; one that is malformed fails alone."""


class GalleryImage(_Asked):
    """What an image of the gallery is: its picture, its feature, or both. In a form the picture is
    the file `image`.
    """

    image_base64: Annotated[str, Field(min_length=1)] | None = None
    """The picture's file in base64."""
    feature: list[Annotated[float, Field(allow_inf_nan=False, strict=True)]] | str | None = None
    """Its feature, where it is known already, as `Encoder.encode_images` gives it, not normalised:
    numbers, or base64 of little-endian float32. Without it the service encodes the picture.
    """
    encoder: Annotated[str, Field(min_length=12, max_length=64)] | None = None
    """Fingerprint of the encoder that gave the feature, as /v1/info tells it; a feature needs it.
    """
    category: list[Name] = []
    """The categories that the image belongs to."""
    attributes: dict[Name, Name] = {}
    """{"colour": "blue"}."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.feature is not None and self.encoder is None:
            raise ValueError(
                "a feature needs `encoder`, the fingerprint of the encoder that gave it"
            )
        return self


class ImportLine(GalleryImage):
    """One line of /v1/gallery:import."""

    image_id: Name


class Written(_Told):
    """A change of the gallery that is on the disk."""

    image_id: str
    version: int
    """The gallery's after it: a search with `min_version` of it, or later, sees the change."""
    created: bool = False
    """Whether there was no such image before."""


class ImportItem(_Told):
    """What became of one line of an import: `version` or `problem`."""

    line: int
    """From 1."""
    image_id: str | None = None
    status: int
    """As a PUT of it alone would have had."""
    version: int | None = None
    problem: Problem | None = None


class Explanation(_Told):
    """Its cosine with each half of the query alone; null where the query has no such half."""

    image: float | None
    text: float | None


class Item(_Told):
    """An image of the gallery."""

    image_id: str
    category: str
    """The first category that the image belongs to; empty where it has none."""
    attributes: dict[str, str]
    thumbnail: str
    """Path of its small picture, relative to the service."""


class Result(Item):
    """An image found."""

    score: float
    """Cosine of the query and the image, -1 to 1."""
    relative_score: float
    """Standard deviations of `score` above the mean over the whole gallery: comparable between
    queries. 0 where the gallery has one image, or all are alike.
    """
    explanation: Explanation


class IndexInfo(_Told):
    """The index that was searched."""

    kind: str
    """flat, ivf or hnsw."""
    size: int
    """Images in it."""
    version: int
    """Of the gallery that was searched; grows with each change."""
    lag_s: float = 0.0
    """Seconds since the gallery's database was last heard of: changes that are younger may be
    missing.
    """
    recall: float
    """Share of the true first 10 that it finds, measured on a sample when it was built; 1 for a
    flat index.
    """


class ModelInfo(_Told):
    """The model that answers, and how good it was when it was trained."""

    preset: str
    encoder: str
    fingerprint: str
    """Begin of the encoder's hash."""
    head: str
    protocol: str
    """Evaluation protocol of the metrics."""
    metrics: dict[str, Any]


class SearchResponse(_Told):
    """Results, best first."""

    results: list[Result]
    total: int
    """Images that the filters leave."""
    model: ModelInfo
    index: IndexInfo
    warnings: list[str]
    """What was done otherwise than asked, such as a text that was cut, and filters that no image
    passes.
    """
    timings: dict[str, float]
    """Milliseconds: read, decode (fetching included), wait, encode, search, total. As in
    Server-Timing.
    """


class BatchItem(_Told):
    """One of a batch: an answer or a problem."""

    status: int
    """As the search alone would have had."""
    response: SearchResponse | None = None
    problem: Problem | None = None


class BatchResponse(_Told):
    """In the order of the searches."""

    items: list[BatchItem]


class GalleryPage(_Told):
    """Images of the gallery in its order."""

    items: list[Item]
    total: int
    """Images that the filters leave."""
    offset: int
    version: int = 0
    """The gallery's."""
    warnings: list[str] = []
    """Filters that no image passes."""


class BundleInfo(_Told):
    """Which bundle a replica serves."""

    digest: str
    """Begin of its manifest's hash."""
    created: str
    refused: str | None = None
    """Why the bundle that it was told to change to last is not the one that it serves; null where
    it is.
    """


class Limits(_Told):
    """What the service takes."""

    body_bytes: int
    image_pixels: int
    image_min_side: int
    formats: list[str]
    text_characters: int
    top_k: int
    offset: int
    batch: int
    page: int
    import_lines: int
    attributes: int
    """Of one image."""


class Info(_Told):
    """What a client, such as the page, needs to know before it asks."""

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
    """What this replica serves, and what it refused to."""
    categories: dict[str, int]
    """Images of each category."""
    attributes: dict[str, dict[str, int]]
    """Images of each value of each attribute, of the most frequent values."""
    example_texts: list[str]
    """Changes that this model was trained on, to try."""


class Health(_Told):
    """Whether the service runs (/healthz), or answers (/readyz)."""

    status: str = "ok"
    replicas: int | None = None
    """Replicas that answer."""
    age_s: float | None = None
    """Seconds ago that this was found out: all who ask within a second are told the same."""


class FieldError(_Told):
    """What is wrong with one field of a request."""

    field: str
    message: str


class Problem(_Told):
    """RFC 9457 problem document, application/problem+json. Of type about:blank, so the title is the
    status's phrase.
    """

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    """What is wrong, what was expected and what to do, for people."""
    limit: str | None = None
    """The setting of the service that the request exceeds."""
    reason: str | None = None
    """Why an image is refused: empty, not_an_image, truncated, too_small, too_large, missing; why
    its URL was not fetched: malformed, scheme, credentials, port, address, redirect, encoding,
    unreachable, tls, timeout, status.
    """
    errors: list[FieldError] | None = None
    """The fields that are wrong."""


for _model in (BatchItem, ImportItem):
    _model.model_rebuild()
