"""The client: one method for each path of the service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, Unpack

from raycd.api import (
    BatchItem,
    BatchResponse,
    GalleryPage,
    Health,
    ImportItem,
    Info,
    Item,
    SearchRequest,
    SearchResponse,
    Written,
)
from raycd.client import errors, gallery, importing, request, retry
from raycd.client.errors import ServiceError
from raycd.client.gallery import Feature
from raycd.client.importing import Importable
from raycd.client.request import Search
from raycd.client.retry import Attempts, Retries
from raycd.client.transport import TIMEOUT_S, URL, Transport


class Client:
    """Asks one service; threads may share it. Close it, or use it in a `with`.

    Every method raises ServiceError where the service refuses or does not answer. Where one takes
    `min_version`, the service waits until the gallery that it answers from is of that version or a
    later one: that of a `Written`, say.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT_S,
        retries: int | Retries = 4,
    ) -> None:
        """`timeout` is in seconds, of one try; `retries` the times that a busy service is asked
        again, or more on that.

        Raises ConfigError for an impossible url or key, and for proxies in the environment that
        cannot be used.
        """
        patience = Retries(retries) if isinstance(retries, int) else retries
        self._service = Transport(url, api_key=api_key, timeout=timeout, retries=patience)
        self.url = self._service.url
        """The service's, without a password."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._service.close()

    def search(self, *, min_version: int | None = None, **search: Unpack[Search]) -> SearchResponse:
        """Find images: search(image="photo.jpg", text="is blue", top_k=5). The fields:
        raycd.api.SearchRequest.

        Raises DataError for an impossible search and for an image that cannot be read.
        """
        asked, image = request.read(search)
        content = request.content(request.body(asked), image)
        return self._service.ask(
            SearchResponse, "POST", "/v1/search", params=_params(min_version), **content
        )

    def search_batch(
        self, searches: Iterable[Search | SearchRequest], *, min_version: int | None = None
    ) -> BatchResponse:
        """Several searches in one request, at most info().limits.batch; each succeeds or fails by
        itself.

        Those that find the service too busy are sent again. Raises DataError as `search` does,
        before any is sent.
        """
        asked = [
            each if isinstance(each, SearchRequest) else request.as_json(each) for each in searches
        ]
        if not asked:
            return BatchResponse(items=[])
        attempts = self._service.attempts()
        items = self._batch(asked, attempts, min_version)
        while (
            busy := [i for i, item in enumerate(items) if item.status in retry.BUSY]
        ) and attempts.again():
            try:
                answered = self._batch([asked[i] for i in busy], attempts, min_version)
            except ServiceError as error:
                if error.status not in retry.BUSY:
                    raise
                break  # what the others have found is not lost
            for i, item in zip(busy, answered, strict=True):
                items[i] = item
        return BatchResponse(items=items)

    def gallery(
        self,
        *,
        offset: int = 0,
        limit: int | None = None,
        category: list[str] | None = None,
        attributes: dict[str, list[str]] | None = None,
        min_version: int | None = None,
    ) -> GalleryPage:
        """A page of the gallery in its order, of the service's usual length unless `limit` says
        another.
        """
        pairs = [
            f"{name}:{value}" for name, values in (attributes or {}).items() for value in values
        ]
        params = _params(
            min_version,
            offset=offset,
            limit=limit,
            category=category or None,
            attribute=pairs or None,
        )
        return self._service.ask(GalleryPage, "GET", "/v1/gallery", params=params)

    def iter_gallery(
        self,
        *,
        category: list[str] | None = None,
        attributes: dict[str, list[str]] | None = None,
        min_version: int | None = None,
    ) -> Iterator[Item]:
        """All images of the gallery, page after page. What changes meanwhile may be missed or come
        twice.
        """
        limit, offset = self.info().limits.page, 0
        while True:
            page = self.gallery(
                offset=offset,
                limit=limit,
                category=category,
                attributes=attributes,
                min_version=min_version,
            )
            yield from page.items
            offset += len(page.items)
            if not page.items or offset >= page.total:
                return

    def image(
        self,
        image_id: str,
        *,
        size: Literal["thumbnail", "original"] = "thumbnail",
        min_version: int | None = None,
    ) -> bytes:
        """The picture of an image of the gallery: a small JPEG, or its file as it is.

        Raises DataError for an impossible id.
        """
        params = _params(min_version, size=size)
        return self._service.send("GET", gallery.path(image_id, "images"), params=params).content

    def put(
        self,
        image_id: str,
        image: str | PathLike[str] | bytes | None = None,
        *,
        category: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        feature: Feature | None = None,
        encoder: str | None = None,
    ) -> Written:
        """Add an image to the gallery, or replace the one of that id: it is on the service's disk
        when this returns.

        `image` is a file or its bytes. A `feature` (D,) that is known already spares the service
        encoding it; it needs `encoder`, the fingerprint of what gave it (info().model.fingerprint).
        Without `image` there is no picture to show. What the image had before, such as attributes,
        is replaced too.

        Raises DataError for an impossible image and for a file that cannot be read.
        """
        given = {
            "image": image,
            "category": category,
            "attributes": attributes,
            "feature": feature,
            "encoder": encoder,
        }
        fields = {name: value for name, value in given.items() if value is not None}
        line, picture = gallery.read({"image_id": image_id, **fields})
        body = request.body(line)
        return self._service.ask(
            Written, "PUT", gallery.path(body.pop("image_id")), **request.content(body, picture)
        )

    def delete(self, image_id: str, *, missing_ok: bool = False) -> Written | None:
        """Remove an image from the gallery, its picture included; None where the service has no
        such image.

        That raises a ServiceError of status 404, unless `missing_ok`, or this is not the first try:
        then an earlier one, whose answer was lost, has done it.
        """
        attempts = self._service.attempts()
        try:
            return self._service.ask(Written, "DELETE", gallery.path(image_id), attempts=attempts)
        except ServiceError as error:
            if (
                error.status == 404
                and error.problem is not None
                and (missing_ok or attempts.made > 1)
            ):
                return None
            raise

    def import_images(
        self,
        items: Iterable[Importable],
        *,
        root: str | PathLike[str] = "",
        per_request: int = importing.PER_REQUEST,
    ) -> Iterator[ImportItem]:
        """Add or replace any number of images; yields what became of each, as soon as the service
        says it.

        An item is an ImportLine, a mapping of its fields, where `image` may be a file or its bytes,
        or a line of JSON of the same; a blank line is none. Relative files start from `root`.
        `line` of what is yielded is the item's number in `items`, from 1. The order is that of the
        items, but those that were sent again come later. Of two items with one image_id the later
        one stands.

        An item that is wrong fails alone: status 422, without being sent. One that finds the
        service too busy, or whose answer is lost, is sent again; a request that settles one item at
        least begins the count of tries anew. Of `items` no more is held than one request carries:
        `per_request` items, or a few megabytes.
        """
        return importing.import_images(
            self._service, items, self.info().limits, root=root, per_request=per_request
        )

    def info(self) -> Info:
        """The model, the index, the limits, and what can be filtered by."""
        return self._service.ask(Info, "GET", "/v1/info")

    def ready(self) -> Health:
        """Asks once whether the service answers searches. A ServiceError of status 503 says that it
        does not yet.
        """
        return self._service.ask(Health, "GET", "/readyz", attempts=Attempts(Retries(count=0)))

    def _batch(
        self, asked: list[SearchRequest], attempts: Attempts, min_version: int | None
    ) -> list[BatchItem]:
        body = {"searches": [request.body(each) for each in asked]}
        response = self._service.send(
            "POST", "/v1/search/batch", attempts=attempts, params=_params(min_version), json=body
        )
        items = self._service.read(response, BatchResponse).items
        if len(items) != len(asked):
            raise errors.unreadable(response, self.url)
        return items


def _params(min_version: int | None, **others: Any) -> dict[str, Any]:
    """The query of a request: what is not None."""
    params = others | {"min_version": min_version}
    return {name: value for name, value in params.items() if value is not None}
