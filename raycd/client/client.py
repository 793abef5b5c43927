"""The client: one method for each path of the service."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from raycd.api import BatchItem, BatchResponse, GalleryPage, Health, Info, Item, SearchRequest, SearchResponse
from raycd.client import errors, request, retry
from raycd.client.errors import ServiceError
from raycd.client.request import Search
from raycd.client.retry import Attempts, Retries
from raycd.errors import ConfigError

URL = "http://127.0.0.1:8000"
TIMEOUT_S = 40.0  # longer than the service's own 30 s, so that its refusal is heard
# Proxies that the environment names are for the world outside: they know nothing of this machine's own services.
_NO_PROXY = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}

Answer = TypeVar("Answer", bound=BaseModel)


class Client:
    """Asks one service; threads may share it. Close it, or use it in a `with`.

    Every method raises ServiceError where the service refuses or does not answer.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT_S,
        retries: int | Retries = 4,
    ) -> None:
        """`timeout` is in seconds, of one try; `retries` the times that a busy service is asked again, or more on that.

        Raises ConfigError for an impossible url or key.
        """
        address = _address(url)
        self.url = str(address.copy_with(userinfo=b"")).rstrip("/")
        """The service's, without a password."""
        self._timeout = timeout
        self._retries = Retries(retries) if isinstance(retries, int) else retries
        self._http = httpx.Client(base_url=address, headers=_headers(api_key), mounts=_NO_PROXY)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def search(self, **search: Unpack[Search]) -> SearchResponse:
        """Find images: search(image="photo.jpg", text="is blue", top_k=5). The fields: raycd.api.SearchRequest.

        Raises DataError for an impossible search and for an image that cannot be read.
        """
        asked, image = request.read(search)
        if image is None:
            response = self._send("POST", "/v1/search", json=request.body(asked))
        else:
            response = self._send("POST", "/v1/search", data=request.form(asked), files={"image": ("image", image)})
        return self._read(response, SearchResponse)

    def search_batch(self, searches: Iterable[Search | SearchRequest]) -> BatchResponse:
        """Several searches in one request, at most info().limits.batch; each succeeds or fails by itself.

        Those that find the service too busy are sent again. Raises DataError as `search` does, before any is sent.
        """
        asked = [each if isinstance(each, SearchRequest) else request.as_json(each) for each in searches]
        if not asked:
            return BatchResponse(items=[])
        attempts = Attempts(self._retries)
        items = self._batch(asked, attempts)
        while (busy := [i for i, item in enumerate(items) if item.status in retry.BUSY]) and attempts.again():
            try:
                answered = self._batch([asked[i] for i in busy], attempts)
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
    ) -> GalleryPage:
        """A page of the gallery in its order, of the service's usual length unless `limit` says another."""
        pairs = [f"{name}:{value}" for name, values in (attributes or {}).items() for value in values]
        asked = {"offset": offset, "limit": limit, "category": category or None, "attribute": pairs or None}
        params = {name: value for name, value in asked.items() if value is not None}
        return self._read(self._send("GET", "/v1/gallery", params=params), GalleryPage)

    def iter_gallery(
        self, *, category: list[str] | None = None, attributes: dict[str, list[str]] | None = None
    ) -> Iterator[Item]:
        """All images of the gallery, page after page."""
        limit, offset = self.info().limits.page, 0
        while True:
            page = self.gallery(offset=offset, limit=limit, category=category, attributes=attributes)
            yield from page.items
            offset += len(page.items)
            if not page.items or offset >= page.total:
                return

    def image(self, image_id: str, *, size: Literal["thumbnail", "original"] = "thumbnail") -> bytes:
        """The picture of an image of the gallery: a small JPEG, or its file as it is."""
        return self._send("GET", f"/v1/images/{quote(image_id, safe='')}", params={"size": size}).content

    def info(self) -> Info:
        """The model, the index, the limits, and what can be filtered by."""
        return self._read(self._send("GET", "/v1/info"), Info)

    def ready(self) -> Health:
        """Asks once whether the service answers searches. A ServiceError of status 503 says that it does not yet."""
        return self._read(self._send("GET", "/readyz", attempts=Attempts(Retries(count=0))), Health)

    def _batch(self, asked: list[SearchRequest], attempts: Attempts) -> list[BatchItem]:
        body = {"searches": [request.body(each) for each in asked]}
        response = self._send("POST", "/v1/search/batch", attempts=attempts, json=body)
        items = self._read(response, BatchResponse).items
        if len(items) != len(asked):
            raise errors.unreadable(response, self.url)
        return items

    def _send(self, method: str, path: str, *, attempts: Attempts | None = None, **content: Any) -> httpx.Response:
        """The response of success, after as many tries as it takes."""
        attempts = attempts or Attempts(self._retries)
        while True:
            try:
                timeout = min(self._timeout, attempts.remaining)
                response = self._http.request(method, path, timeout=timeout, **content)
            except httpx.RequestError as failure:
                if retry.is_passing(failure) and attempts.again():
                    continue
                raise errors.unreachable(failure, self.url, tries=attempts.made) from failure
            if response.is_success:
                return response
            after = retry.retry_after(response)
            if response.status_code not in retry.BUSY or not attempts.again(after):
                raise errors.refused(response, self.url, tries=attempts.made, retry_after=after)

    def _read(self, response: httpx.Response, kind: type[Answer]) -> Answer:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise errors.unreadable(response, self.url) from error


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL()
    if address.scheme not in ("http", "https") or not address.host or address.query or address.fragment:
        shown = "one with a password" if "@" in url else repr(url)
        raise ConfigError("the url of the service is impossible", got=shown, expected=f"http://host:port, as {URL}")
    return address


def _headers(api_key: str | None) -> dict[str, str]:
    key = (api_key or "").strip()
    if not key:
        return {"User-Agent": "raycd"}
    if not key.isascii() or not key.isprintable():  # an error of httpx's would show it
        raise ConfigError("the API key is impossible", got="letters that a header cannot carry", expected="plain ASCII")
    return {"User-Agent": "raycd", "Authorization": f"Bearer {key}"}
