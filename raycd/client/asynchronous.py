"""The client in an event loop: a method for each path of the service, written once for both."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, Self, Unpack

from raycd.api import (
    UNKNOWN_GALLERY,
    BatchResponse,
    EmbedBatchResponse,
    Embedding,
    GalleryFilters,
    GalleryList,
    GalleryPage,
    Health,
    Info,
    Item,
    NamedGallery,
    QueryRequest,
    SearchRequest,
    SearchResponse,
    Written,
)
from raycd.api.events import EventsRequest, EventsTaken, UserEvent
from raycd.client import errors, gallery, request, retry
from raycd.client.errors import ServiceError
from raycd.client.gallery import Feature
from raycd.client.request import QueryFields, Search
from raycd.client.retry import Attempts, Retries
from raycd.client.transport import GALLERIES, TIMEOUT_S, URL, Transport
from raycd.client.wire import AsyncWire, BlockingWire
from raycd.filters import Condition


class AsyncClient:
    """A client of one service, in one event loop; close it, or use it in an `async with`.

    Every method raises ServiceError where the service refuses or does not answer. With
    `min_version`, such as that of a `Written`, the service first waits until the gallery that it
    answers from has that version or a later one.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        gallery: str = "",
        timeout: float = TIMEOUT_S,
        retries: int | Retries = 4,
        _wire: type[AsyncWire] | type[BlockingWire] = AsyncWire,
    ) -> None:
        """Open connections.

        Args:
            gallery: Which of the service's galleries is asked; empty: its default one.
            timeout: Seconds of each wait of a try: for a connection, and for the service to go on.
            retries: How often a busy service is asked again.

        Raises:
            ConfigError: The url, key or gallery is impossible, or a proxy of the environment is.
        """
        patience = Retries(retries) if isinstance(retries, int) else retries
        self._service = Transport(
            url, _wire, api_key=api_key, gallery=gallery, timeout=timeout, retries=patience
        )
        self.url = self._service.url
        """The url of the service, without a password."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()

    async def search(
        self, *, min_version: int | None = None, user: str = "", **search: Unpack[Search]
    ) -> SearchResponse:
        """Find images: search(image="photo.jpg", text="is blue", top_k=5).

        Args:
            user: Any text that names whoever asks, for a service that splits users between models.
            search: The fields of raycd.api.SearchRequest, and `image`, a file or its bytes.

        Raises:
            DataError: The search is impossible, or its image cannot be read.
        """
        asked, image = request.read(SearchRequest, search)
        content = request.content(request.body(asked), image) | request.of_user(user)
        return await self._service.ask(
            SearchResponse, "POST", self._path("search"), params=_params(min_version), **content
        )

    async def search_batch(
        self,
        searches: Iterable[Search | SearchRequest],
        *,
        min_version: int | None = None,
        user: str = "",
    ) -> BatchResponse:
        """Send several searches of a `user`, at most info().limits.batch, in one request.

        Each succeeds or fails by itself. Those that find the service too busy are sent again; where
        that fails, whatever the reason, they keep their 503.

        Raises:
            DataError: As `search`, before any is sent.
        """
        asked = [
            each if isinstance(each, SearchRequest) else request.as_json(SearchRequest, each)
            for each in searches
        ]
        content = {"params": _params(min_version), **request.of_user(user)}
        bodies = [request.body(each) for each in asked]
        items = await self._batch(BatchResponse, "search/batch", "searches", bodies, content)
        return BatchResponse(items=items)

    async def embed(self, *, user: str = "", **query: Unpack[QueryFields]) -> Embedding:
        """Return the vectors of a query: embed(image="photo.jpg", text="is blue").

        Args:
            user: As of a search; without one they are of the model whose features the gallery has.
            query: The fields of raycd.api.QueryRequest, and `image`, a file or its bytes.

        Raises:
            DataError: As `search`.
        """
        asked, image = request.read(QueryRequest, query)
        content = request.content(request.body(asked), image) | request.of_user(user)
        return await self._service.ask(Embedding, "POST", self._path("embed"), **content)

    async def embed_batch(
        self, queries: Iterable[QueryFields], *, user: str = ""
    ) -> EmbedBatchResponse:
        """Send several queries of a `user` to `embed`, at most info().limits.batch, at once.

        Each succeeds or fails by itself. Those that find the service too busy are sent again, as
        those of `search_batch`.

        Raises:
            DataError: As `search`, before any is sent.
        """
        bodies = [request.body(request.as_json(QueryRequest, query)) for query in queries]
        content = request.of_user(user)
        items = await self._batch(EmbedBatchResponse, "embed/batch", "queries", bodies, content)
        return EmbedBatchResponse(items=items)

    async def gallery(
        self,
        *,
        offset: int = 0,
        limit: int | None = None,
        category: list[str] | None = None,
        attributes: Mapping[str, list[str] | Condition | dict[str, Any]] | None = None,
        min_version: int | None = None,
    ) -> GalleryPage:
        """Return a page of the gallery, of the service's usual length unless `limit` is given.

        `attributes` are filtered by as in a search.
        """
        wanted = dict(attributes or {})
        request.checked(GalleryFilters, {"category": category or [], "attributes": wanted})
        # An older service knows values alone, of names that end at the first colon
        paired = {
            name: values
            for name, values in wanted.items()
            if isinstance(values, list) and values and ":" not in name
        }
        pairs = [f"{name}:{value}" for name, values in paired.items() for value in values]
        conditions = {
            name: one.model_dump(exclude_unset=True, by_alias=True)
            if isinstance(one, Condition)
            else one
            for name, one in wanted.items()
            if name not in paired
        }
        params = _params(
            min_version,
            offset=offset,
            limit=limit,
            category=category or None,
            attribute=pairs or None,
            attributes=json.dumps(conditions) if conditions else None,
        )
        return await self._service.ask(GalleryPage, "GET", self._path("gallery"), params=params)

    async def iter_gallery(
        self,
        *,
        category: list[str] | None = None,
        attributes: Mapping[str, list[str] | Condition | dict[str, Any]] | None = None,
        min_version: int | None = None,
    ) -> AsyncGenerator[Item, None]:
        """Iterate over all images of the gallery, page by page.

        Images that are added or removed meanwhile may be missed, and others come twice.
        """
        limit, offset = (await self.info()).limits.page, 0
        while True:
            page = await self.gallery(
                offset=offset,
                limit=limit,
                category=category,
                attributes=attributes,
                min_version=min_version,
            )
            for item in page.items:
                yield item
            offset += len(page.items)
            if not page.items or offset >= page.total:
                return

    async def image(
        self,
        image_id: str,
        *,
        size: Literal["thumbnail", "original"] = "thumbnail",
        min_version: int | None = None,
    ) -> bytes:
        """Return the picture of an image of the gallery: a small JPEG, or its original file.

        Raises:
            DataError: The id is impossible.
        """
        params = _params(min_version, size=size)
        path = self._path(gallery.path(image_id, "images"))
        response = await self._service.send("GET", path, params=params)
        return response.content

    async def put(
        self,
        image_id: str,
        image: str | PathLike[str] | bytes | None = None,
        *,
        category: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        feature: Feature | None = None,
        encoder: str | None = None,
    ) -> Written:
        """Add an image to the gallery, or replace the one of that id with all that it had.

        It is on the service's disk when this returns.

        Args:
            image: A file or its bytes; None: there is no picture to show.
            feature: (D,), if it is known, so that the service need not encode the image.
            encoder: Fingerprint of the encoder of `feature`, as in info().model.fingerprint.

        Raises:
            DataError: The image is impossible, or its file cannot be read.
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
        path = self._path(gallery.path(body.pop("image_id")))
        return await self._service.ask(Written, "PUT", path, **request.content(body, picture))

    async def delete(self, image_id: str, *, missing_ok: bool = False) -> Written | None:
        """Remove an image from the gallery, with its picture.

        A missing image raises ServiceError of status 404, unless `missing_ok`, or this is not the
        first try: then an earlier one, whose answer was lost, may have removed it.

        Returns:
            The change; None where there was no such image.
        """
        attempts, path = self._service.attempts(), self._path(gallery.path(image_id))
        try:
            return await self._service.ask(Written, "DELETE", path, attempts=attempts)
        except ServiceError as error:
            if (
                error.status == 404
                and error.problem is not None
                and error.problem.reason != UNKNOWN_GALLERY
                and (missing_ok or attempts.made > 1)
            ):
                return None
            raise

    async def send_events(self, events: Iterable[UserEvent]) -> int:
        """Tell the service what people did with results: UserEvent.of(query_id, "click", image_id).

        Returns how many it took, which is all. One that is sent twice counts once.
        """
        body = EventsRequest(events=list(events)).model_dump(mode="json", exclude_none=True)
        taken = await self._service.ask(EventsTaken, "POST", self._path("events"), json=body)
        return taken.taken

    async def info(self) -> Info:
        """Return the model, the index, the limits, and what can be filtered by."""
        return await self._service.ask(Info, "GET", self._path("info"))

    async def galleries(self) -> list[NamedGallery]:
        """Return the galleries of the service that the key is for, the default one first."""
        return (await self._service.ask(GalleryList, "GET", GALLERIES)).galleries

    async def ready(self) -> Health:
        """Ask once whether the service answers searches; status 503 says that it does not yet."""
        return await self._service.ask(
            Health, "GET", self._service.ready, attempts=Attempts(Retries(count=0))
        )

    def _path(self, name: str) -> str:
        return f"{self._service.root}/{name}"

    async def _batch(
        self,
        response: type[BatchResponse] | type[EmbedBatchResponse],
        path: str,
        name: str,
        bodies: list[dict[str, Any]],
        content: Mapping[str, Any],
    ) -> list[Any]:
        """Return the items of a batch; those that find the service too busy are sent again."""
        attempts = self._service.attempts()

        async def sent(some: list[dict[str, Any]]) -> list[Any]:
            answer = await self._service.send(
                "POST", self._path(path), attempts=attempts, json={name: some}, **content
            )
            items: list[Any] = list(self._service.read(answer, response).items)
            if len(items) != len(some):
                raise errors.unreadable(answer, self.url)
            return items

        items = await sent(bodies) if bodies else []
        while (
            busy := [i for i, item in enumerate(items) if item.status in retry.BUSY]
        ) and await self._service.again(attempts):
            try:
                answered = await sent([bodies[i] for i in busy])
            except ServiceError:
                break  # keep the answers of the others
            for i, item in zip(busy, answered, strict=True):
                items[i] = item
        return items


def _params(min_version: int | None, **others: Any) -> dict[str, Any]:
    """Return the query parameters that are not None."""
    params = others | {"min_version": min_version}
    return {name: value for name, value in params.items() if value is not None}
