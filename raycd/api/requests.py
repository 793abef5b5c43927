"""The types of requests over HTTP (version 1, under /v1)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from raycd.filters import EachOnce, Filter, Name, Number

Text = Annotated[str, StringConstraints(strip_whitespace=True)]
MAX_REFERENCE = 100_000  # characters of a history
USER = "Raycd-User"  # header that names who asks
Weight = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False), Number]


class RequestPart(BaseModel):
    """A request or a part of one: an unknown field is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ImagePart(RequestPart):
    """An image, in at most one way."""

    image_id: Name | None = None
    """The reference is this image of the gallery: no image is uploaded and none is encoded."""
    image_base64: Annotated[str, Field(min_length=1)] | None = None
    """The reference image's file in base64."""
    image_url: Annotated[Text, Field(min_length=1, max_length=4096)] | None = None
    """The reference image is fetched from here, where the service allows it (https only)."""

    ways: ClassVar[tuple[str, ...]] = ("image_id", "image_base64", "image_url")

    @property
    def given(self) -> list[str]:
        """The ways in which the image is given."""
        return [name for name in self.ways if getattr(self, name)]

    @model_validator(mode="after")
    def _one_image(self) -> Self:
        given = self.given
        if len(given) > 1:
            raise ValueError(
                f"the image is given in {len(given)} ways ({', '.join(given)}): give one of them"
            )
        return self


class WeightedImage(ImagePart):
    """One of several images of a query."""

    weight: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False), Number] = 1.0
    """Its share of the reference, beside the other weights above 0; below 0 it pushes the results
    away, -0.5 as much as a negative text.
    """

    @model_validator(mode="after")
    def _some_image(self) -> Self:
        if not self.given:
            raise ValueError("has no image: give image_id, image_base64 or image_url")
        return self


class QueryRequest(ImagePart):
    """An image, a text, or both. The image is given in one way; in a form, as the file `image`."""

    ways = (*ImagePart.ways, "images")

    images: list[WeightedImage] = []
    """Several images in place of one, each with a weight; in a form as JSON."""
    reference: Annotated[str, Field(min_length=1, max_length=MAX_REFERENCE)] | None = None
    """The `history` of an earlier answer, from which this query goes on: with a new text alone, or
    with one of the results as the image, too.
    """
    text: Text = ""
    """What should differ: is blue, with long sleeves. Without an image, what is looked for."""
    negative_text: Text = ""
    """What the results should not look like."""
    image_weight: Weight = 1.0
    """1 is the model's own balance; more draws the results towards the image, 0 takes it out."""
    text_weight: Weight = 1.0
    """Likewise for the text."""


class Boost(RequestPart):
    """The attribute whose numbers move results up or down."""

    attribute: Name
    """One whose values are numbers."""
    weight: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False), Number]
    """What the greatest number adds to a score, and the least does not; below 0 small numbers are
    better.
    """


class SearchRequest(QueryRequest):
    """An image, a text, or both, and what is searched for them."""

    top_k: Annotated[Annotated[int, Field(ge=1)] | None, Number] = None
    """Number of results; the service's default where absent, and at most its limit."""
    offset: Annotated[int, Field(ge=0), Number] = 0
    """Number of first results to leave out: the next page."""
    category: list[Name] = []
    """Only images of one of these categories; none: of all."""
    attributes: Annotated[dict[Name, Filter], EachOnce] = {}
    """Only images with one of these values of each attribute, or one that fits a condition:
    {"colour": ["blue", "navy"], "price": {"gte": 10, "lt": 50}, "brand": {"not": ["none"]}}.
    """
    among: list[Name] = []
    """Only these images of the gallery; none: all of them."""
    exclude_reference: bool = False
    """Leave the images of the gallery that the query names out of the results."""
    exact: bool = False
    """Compare with every image, whatever the index: slower, and never misses one."""
    rerank_depth: Annotated[Annotated[int, Field(ge=0)] | None, Number] = None
    """First candidates that a model which re-ranks puts in its own order; 0: none. The model's
    default where absent, and at most the service's limit.
    """
    boost: Boost | None = None
    """The first candidates come by score + weight x percentile of their numbers among them."""
    near_duplicates: Literal["show", "hide"] = "show"
    """hide: of images that are almost the same, only the best one."""
    group_by: Name | None = None
    """One result for each value of this attribute; images without it stay as they are."""
    session: bool = False
    """Let the answer have a `history`, for the `reference` of the next search. With a `reference`
    it has one anyway.
    """
    diversity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Number] = 0.0
    """0: the best first. Above, results are unlike those before them, too (maximal marginal
    relevance, with lambda = 1 - diversity).
    """


class EmbedBatchRequest(RequestPart):
    """Several queries to embed, each of which succeeds or fails by itself."""

    queries: Annotated[list[Any], Field(min_length=1)]
    """Bodies of /v1/embed; a malformed one fails alone."""


class GalleryFilters(RequestPart):
    """What a page of the gallery shows; in its address, `attributes` is JSON."""

    category: list[Name] = []
    """Only images of one of these categories; none: of all."""
    attributes: Annotated[dict[Name, Filter], EachOnce] = {}
    """As of a search."""


class BatchRequest(RequestPart):
    """Several searches, each of which succeeds or fails by itself."""

    searches: Annotated[list[Any], Field(min_length=1)]
    """Bodies of /v1/search; a malformed one fails alone."""


class GalleryImage(RequestPart):
    """An image for the gallery: a picture, a feature, or both. In a form it is the file `image`."""

    image_base64: Annotated[str, Field(min_length=1)] | None = None
    """The picture's file in base64."""
    feature: list[Annotated[float, Field(allow_inf_nan=False, strict=True)]] | str | None = None
    """Its feature, if known, as `Encoder.encode_images` returns it, not normalised: numbers, or
    base64 of little-endian float32. Without it the service encodes the picture.
    """
    encoder: Annotated[str, Field(min_length=12, max_length=64)] | None = None
    """Fingerprint of the feature's encoder, as in /v1/info; a feature needs it."""
    category: Annotated[list[Name], AfterValidator(lambda own: list(dict.fromkeys(own)))] = []
    """The categories that the image belongs to."""
    attributes: Annotated[dict[Name, Name], EachOnce] = {}
    """{"colour": "blue"}."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.feature is not None and self.encoder is None:
            raise ValueError("a feature needs `encoder`, the fingerprint of its encoder")
        return self


class ImportLine(GalleryImage):
    """One line of /v1/gallery:import."""

    image_id: Name
