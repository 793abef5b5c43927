"""The blocking client: the methods of AsyncClient over a wire that needs no event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable, Iterator
from functools import update_wrapper
from os import PathLike
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from raycd.api import ImportItem
from raycd.client import importing
from raycd.client.asynchronous import AsyncClient
from raycd.client.importing import Importable
from raycd.client.retry import Retries
from raycd.client.transport import TIMEOUT_S, URL
from raycd.client.wire import BlockingWire, now

T = TypeVar("T")
P = ParamSpec("P")


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Client, P], T]:
    """Return a method of AsyncClient as one that blocks."""

    def made(self: Client, /, *args: P.args, **named: P.kwargs) -> T:
        return now(method(self._coroutines, *args, **named))

    update_wrapper(made, method)
    return made


def _iterator(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Client, P], Generator[T]]:
    """Return an asynchronous generator of AsyncClient as a plain one."""

    async def following(items: AsyncGenerator[T, None]) -> T:
        return await anext(items)

    def made(self: Client, /, *args: P.args, **named: P.kwargs) -> Generator[T]:
        items = method(self._coroutines, *args, **named)
        while True:
            try:
                item = now(following(items))
            except StopAsyncIteration:
                return
            yield item

    update_wrapper(made, method)
    return made


class Client:
    """A client of one service. Threads may share it; close it, or use it in a `with`.

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
    ) -> None:
        """Open connections; arguments and errors are those of AsyncClient."""
        self._coroutines = AsyncClient(
            url,
            api_key=api_key,
            gallery=gallery,
            timeout=timeout,
            retries=retries,
            _wire=BlockingWire,
        )
        self.url = self._coroutines.url
        """The url of the service, without a password."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    close = _blocking(AsyncClient.close)
    search = _blocking(AsyncClient.search)
    search_batch = _blocking(AsyncClient.search_batch)
    embed = _blocking(AsyncClient.embed)
    embed_batch = _blocking(AsyncClient.embed_batch)
    gallery = _blocking(AsyncClient.gallery)
    iter_gallery = _iterator(AsyncClient.iter_gallery)
    image = _blocking(AsyncClient.image)
    put = _blocking(AsyncClient.put)
    delete = _blocking(AsyncClient.delete)
    send_events = _blocking(AsyncClient.send_events)
    info = _blocking(AsyncClient.info)
    galleries = _blocking(AsyncClient.galleries)
    ready = _blocking(AsyncClient.ready)

    def import_images(
        self,
        items: Iterable[Importable],
        *,
        root: str | PathLike[str] = "",
        per_request: int = importing.PER_REQUEST,
    ) -> Iterator[ImportItem]:
        """Add or replace any number of images; yield the result of each as it arrives.

        A wrong item fails alone, with status 422, without being sent. One that finds the service
        too busy, or whose answer is lost, is sent again; each request that settles an item resets
        the count of tries. Of two items with one image_id the later one counts. Only the items of
        one request are in memory.

        Args:
            items: ImportLines, mappings of their fields, where `image` may be a file or its bytes,
                or lines of JSON of the same. Blank lines are skipped.
            root: Folder where relative files start.
            per_request: Items of a request, at most; so are a few megabytes.

        Yields:
            Results in the order of the items, but for those that were sent again; `line` is the
            number of the item in `items`, from 1.
        """
        return importing.import_images(
            self._coroutines._service, items, self.info().limits, root=root, per_request=per_request
        )
