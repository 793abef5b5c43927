"""POST /v1/search and /v1/search/batch."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response

from raycd.api import BatchItem, BatchRequest, BatchResponse, Explanation, SearchRequest, SearchResponse
from raycd.api import Result as ApiResult
from raycd.query import Answer, Prepared
from serve import bodies, problems
from serve.browsing import thumbnail
from serve.fetch import fetch

if TYPE_CHECKING:
    from serve.service import SearchService

_log = logging.getLogger("ray.serve")
_ERRORS = problems.responses(400, 403, 404, 413, 415, 422, 503)


def router(service: SearchService) -> APIRouter:
    """The routes that search."""
    routes = APIRouter(tags=["search"])

    @routes.post("/v1/search", response_model=SearchResponse, responses=_ERRORS, openapi_extra=bodies.OPENAPI)
    async def search(request: Request) -> Response:
        """Find the images that look like the given one, changed as the text says. Either alone is a query, too."""
        began = time.perf_counter()
        with service.admission.slot():  # before the body is read
            async with _deadline(service):
                asked, image = await bodies.read(request, service.args)
                read_ms = _since(began)
                found, batch = await _search(service, asked, image)
        found.timings = _rounded({"read": read_ms, **found.timings, "total": _since(began)})
        service.metrics.search(found.timings, service.admission.busy)
        return _json(found, {"Server-Timing": _server_timing(found.timings, batch)})

    @routes.post(
        "/v1/search/batch", response_model=BatchResponse, responses=_ERRORS, openapi_extra=_body_of(BatchRequest)
    )
    async def search_batch(request: Request) -> Response:
        """Several searches at once; each succeeds or fails by itself."""
        with service.admission.slot():
            async with _deadline(service):
                searches = _batch(await bodies.parsed(request), service.args.max_batch)
        items = await asyncio.gather(*(_item(service, body) for body in searches))
        return _json(BatchResponse(items=items))

    return routes


def _body_of(model: type[BatchRequest]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {bodies.JSON: {"schema": model.model_json_schema()}}}}


def _batch(body: Any, most: int) -> list[Any]:
    asked = bodies.validated(BatchRequest, body)
    if len(asked.searches) > most:
        got = len(asked.searches)
        raise problems.beyond("max_batch", "too many searches", got=got, most=most, field="searches", do="send fewer")
    return asked.searches


async def _item(service: SearchService, body: Any) -> BatchItem:
    began = time.perf_counter()
    try:
        with service.admission.slot():
            async with _deadline(service):
                found, _ = await _search(service, *bodies.of_json(body, service.args))
    except Exception as error:
        problem = problems.of(error)
        if problem is None:
            _log.exception("a search of a batch failed")
            problem = problems.failed()
        return BatchItem(status=problem.status_code, problem=problem.problem)
    found.timings = _rounded({**found.timings, "total": _since(began)})
    return BatchItem(status=200, response=found)


async def _search(service: SearchService, asked: SearchRequest, image: bytes | None) -> tuple[SearchResponse, int]:
    """The answer, with the milliseconds of its steps, and the size of the batch that it was part of."""
    began = time.perf_counter()
    if asked.image_url:
        args = service.args
        image = await fetch(asked.image_url, max_bytes=args.max_body_bytes, timeout_s=args.fetch_timeout_s)
    query = await service.prepare(asked, image)
    decode_ms = _since(began)
    began = time.perf_counter()
    answer = await service.answer(query)
    encode_ms, search_ms = 1000 * answer.encode_s, 1000 * answer.search_s
    wait_ms = max(0.0, _since(began) - encode_ms - search_ms)
    timings = {"decode": decode_ms, "wait": wait_ms, "encode": encode_ms, "search": search_ms}
    return _told(service, query, answer, timings), answer.batch


def _told(service: SearchService, query: Prepared, answer: Answer, timings: dict[str, float]) -> SearchResponse:
    allowed = query.query.allowed
    cut = [f"the end of the text was cut off, the model reads less: {text[:40]}..." for text in query.truncated]
    return SearchResponse(
        results=[
            ApiResult.model_construct(  # what we made ourselves needs no check, and there are many of them
                image_id=found.image_id,
                category=found.category,
                attributes=service.searcher.gallery.attributes(found.position),
                thumbnail=thumbnail(found.image_id),
                score=found.score,
                relative_score=found.relative_score,
                explanation=Explanation.model_construct(image=found.image_score, text=found.text_score),
            )
            for found in answer.results
        ],
        total=len(service.searcher.gallery) if allowed is None else int(allowed.sum()),
        model=service.model,
        index=service.index,
        warnings=cut,
        timings=timings,
    )


class _deadline(asyncio.Timeout):
    """The time that a search may take, whatever a client's headers say; beyond it 503."""

    def __init__(self, service: SearchService) -> None:
        self._seconds = service.args.timeout_s
        super().__init__(asyncio.get_running_loop().time() + self._seconds)

    async def __aexit__(self, *info: Any) -> bool | None:
        try:
            return await super().__aexit__(*info)
        except TimeoutError:
            raise problems.busy(f"the search took longer than {self._seconds:g} s (timeout_s)") from None


def _json(body: SearchResponse | BatchResponse, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)


def _since(began: float) -> float:
    """Milliseconds."""
    return 1000 * (time.perf_counter() - began)


def _rounded(timings: dict[str, float]) -> dict[str, float]:
    return {step: round(milliseconds, 3) for step, milliseconds in timings.items()}


def _server_timing(timings: dict[str, float], batch: int) -> str:
    return ", ".join(
        [*(f"{step};dur={milliseconds}" for step, milliseconds in timings.items()), f'batch;desc="{batch}"']
    )
