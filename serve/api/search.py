"""POST /v1/search and /v1/search/batch."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from raycd.api import (
    BatchItem,
    BatchRequest,
    BatchResponse,
    Explanation,
    SearchRequest,
    SearchResponse,
    SearchResult,
)
from raycd.search.query import Answer, Prepared
from serve import tracing
from serve.api import bodies, filters, problems, search_body
from serve.api.gallery import MinVersion, thumbnail_url
from serve.api.intake import Intake
from serve.api.wellformed import known_parameters
from serve.engine import Engine
from serve.metrics import Metrics
from serve.replica import Replica
from serve.security.fetch import fetch

_ERRORS = problems.responses(400, 403, 404, 408, 413, 415, 422, 503)


def router(replica: Replica, intake: Intake, metrics: Metrics) -> APIRouter:
    """Return the routes that search."""
    routes = APIRouter(tags=["search"], dependencies=[Depends(known_parameters)])

    @routes.post(
        "/v1/search",
        response_model=SearchResponse,
        responses=_ERRORS,
        openapi_extra=search_body.OPENAPI,
    )
    async def search(request: Request, min_version: MinVersion = 0) -> Response:
        """Find the images that look like the given one, changed as the text says. Either alone is a
        query, too.
        """
        began = time.perf_counter()
        async with replica.deadline():
            # Who waits for a version takes no search's slot, nor does who sends slowly.
            engine = await replica.wait_for_version(min_version)
            replica.searches.check()
            await intake.read(request, replica.args.max_filters)
            with replica.searches.slot():
                asked, image = await search_body.read(request, replica.args)
                read_ms = _since(began)
                found, batch = await _search(replica, engine, asked, image)
        found.timings = _rounded({"read": read_ms, **found.timings, "total": _since(began)})
        metrics.search(found.timings, replica.searches.busy)
        tracing.steps(found.timings)
        return _json(found, {"Server-Timing": _server_timing(found.timings, batch)})

    @routes.post(
        "/v1/search/batch",
        response_model=BatchResponse,
        responses=_ERRORS,
        openapi_extra=_body_of(BatchRequest),
    )
    async def search_batch(request: Request, min_version: MinVersion = 0) -> Response:
        """Several searches at once; each succeeds or fails by itself."""
        async with replica.deadline():
            _check_json(request)
            engine = await replica.wait_for_version(min_version)
            replica.searches.check()
            await intake.read(request, replica.args.max_batch * replica.args.max_filters)
            with replica.searches.slot():
                searches = _batch(await bodies.parsed(request), replica.args.max_batch)
        items = await asyncio.gather(*(_item(replica, metrics, engine, body) for body in searches))
        return _json(BatchResponse(items=items))

    return routes


def _body_of(model: type[BatchRequest]) -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "content": {bodies.JSON: {"schema": model.model_json_schema()}},
        }
    }


def _check_json(request: Request) -> None:
    # Any other content type may be sent blind by pages of other origins.
    kind = bodies.content_type(request)
    if not bodies.is_json(kind):
        detail = f"the content type is {kind or 'not given'!r}: send {bodies.JSON}"
        raise problems.ProblemError(415, detail, headers={"Accept": bodies.JSON})


def _batch(body: Any, most: int) -> list[Any]:
    asked = bodies.validated(BatchRequest, body)
    if len(asked.searches) > most:
        got = len(asked.searches)
        raise problems.beyond(
            "max_batch", "too many searches", got=got, most=most, field="searches", do="send fewer"
        )
    return asked.searches


async def _item(replica: Replica, metrics: Metrics, engine: Engine, body: Any) -> BatchItem:
    began = time.perf_counter()
    try:
        with replica.searches.slot():
            async with replica.deadline():
                found, _ = await _search(replica, engine, *search_body.of_json(body, replica.args))
    except Exception as error:
        problem = problems.logged(error, "a search of a batch")
        return BatchItem(status=problem.status_code, problem=problem.problem)
    found.timings = _rounded({**found.timings, "total": _since(began)})
    metrics.search(found.timings, replica.searches.busy)
    tracing.steps(found.timings)
    return BatchItem(status=200, response=found)


async def _search(
    replica: Replica, engine: Engine, asked: SearchRequest, image: bytes | None
) -> tuple[SearchResponse, int]:
    """Return the answer with the milliseconds of its steps, and the size of its batch."""
    began = time.perf_counter()
    if asked.image_url:
        args = replica.args
        image = await fetch(
            asked.image_url, max_bytes=args.max_body_bytes, timeout_s=args.fetch_timeout_s
        )
    query = await replica.prepare(engine, asked, image)
    decode_ms = _since(began)
    began = time.perf_counter()
    answer = await replica.answer(engine, query)
    steps = {"encode": 1000 * answer.encode_s, "search": 1000 * answer.search_s}
    rerank_ms = 1000 * answer.rerank_s
    wait_ms = max(0.0, _since(began) - sum(steps.values()) - rerank_ms)
    timings = {"decode": decode_ms, "wait": wait_ms, **steps}
    if query.rerank_depth:
        timings["rerank"] = rerank_ms
    found = _response(engine, query, answer, timings, await _total(replica, query))
    if asked.category or asked.attributes or asked.among:
        found.warnings += await replica.run_in_thread(
            lambda: filters.warnings(query.view, asked.category, asked.attributes, asked.among)
        )
    return found, answer.batch


def _response(
    engine: Engine, query: Prepared, answer: Answer, timings: dict[str, float], total: int
) -> SearchResponse:
    warnings = [
        f"the end of the text was cut off, the model reads less: {text[:40]}..."
        for text in query.truncated
    ]
    warnings += _not_reranked(engine, query, answer)
    return SearchResponse(
        results=[
            # What we made ourselves needs no check, and there are many of them.
            SearchResult.model_construct(
                image_id=found.image_id,
                category=found.category,
                attributes=found.attributes,
                thumbnail=thumbnail_url(found.image_id),
                score=found.score,
                relative_score=found.relative_score,
                rerank_score=found.rerank_score,
                explanation=Explanation.model_construct(
                    image=found.image_score, text=found.text_score
                ),
            )
            for found in answer.results
        ],
        total=total,
        model=engine.model,
        index=engine.index_info(query.view),
        warnings=warnings,
        timings=timings,
    )


def _not_reranked(engine: Engine, query: Prepared, answer: Answer) -> list[str]:
    """Say why an answer is not re-ranked that should have been."""
    if query.rerank_depth and not answer.reranked:
        return ["the results are not re-ranked: the answer would have come too late (timeout_s)"]
    if query.query.rerank_depth and not query.rerank_depth:
        if not engine.bundle.head.reranks:
            return [f"rerank_depth changes nothing: the head {engine.model.head} re-ranks nothing"]
        return ["rerank_depth changes nothing: only searches of image and text are re-ranked"]
    return []


async def _total(replica: Replica, query: Prepared) -> int:
    """Return how many images the search chose among."""
    asked, view = query.query, query.view
    without = query.reference.image_id if query.reference and asked.exclude_reference else None
    if asked.allowed is None and without is None:
        return len(view)
    return await replica.run_in_thread(lambda: view.count(asked.allowed, without=without))


def _json(body: SearchResponse | BatchResponse, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)


def _since(began: float) -> float:
    """Return milliseconds."""
    return 1000 * (time.perf_counter() - began)


def _rounded(timings: dict[str, float]) -> dict[str, float]:
    return {step: round(milliseconds, 3) for step, milliseconds in timings.items()}


def _server_timing(timings: dict[str, float], batch: int) -> str:
    return ", ".join(
        [
            *(f"{step};dur={milliseconds}" for step, milliseconds in timings.items()),
            f'batch;desc="{batch}"',
        ]
    )
