"""POST /v1/search and /v1/search/batch."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request, Response
from starlette.background import BackgroundTasks

from raycd.api import (
    BatchItem,
    BatchRequest,
    BatchResponse,
    Explanation,
    SearchRequest,
    SearchResponse,
    SearchResult,
)
from raycd.search import history
from raycd.search.query import Answer, Prepared
from serve.api import batches, filters, problems, search_body, users
from serve.api.gallery import MinVersion, thumbnail_url
from serve.api.served import Asked, Served
from serve.api.wellformed import known_parameters
from serve.engine.engine import Engine
from serve.engine.queries import QueryImage
from serve.monitoring import tracing
from serve.monitoring.metrics import Metrics
from serve.replica import Replica

QUERY_ID = "Raycd-Query-Id"

_ERRORS = problems.responses(400, 403, 404, 408, 409, 413, 415, 422, 503)


def router(asked: Asked, prefix: str) -> APIRouter:
    """Return the routes that search the gallery that is asked."""
    routes = APIRouter(prefix=prefix, tags=["search"], dependencies=[Depends(known_parameters)])

    @routes.post(
        "/search",
        response_model=SearchResponse,
        responses=_ERRORS,
        openapi_extra=users.OPENAPI | search_body.OPENAPI,
    )
    async def search(request: Request, min_version: MinVersion = 0, to: Served = asked) -> Response:
        """Find the images that look like the given one, changed as the text says. Either alone is a
        query, too.
        """
        began, after, replica = time.perf_counter(), BackgroundTasks(), to.replica
        async with replica.deadline():
            # Who waits for a version takes no search's slot, nor does who sends slowly.
            engine = await replica.wait_for_version(min_version, users.user_of(request))
            replica.searches.check()
            await to.intake.read(request, replica.args.max_filters)
            with replica.searches.slot():
                query, sent = await search_body.read(SearchRequest, request, replica.args)
                read_ms = batches.since(began)
                with replica.further_images(sent):
                    found, batch = await _search(replica, engine, query, sent, after)
        found.timings = batches.rounded(
            {"read": read_ms, **found.timings, "total": batches.since(began)}
        )
        to.metrics.search(found.timings, replica.searches.busy)
        tracing.steps(found.timings)
        headers = {"Server-Timing": _server_timing(found.timings, batch), QUERY_ID: found.query_id}
        return batches.answer(found, headers | {users.MODEL: engine.model.bundle}, after)

    @routes.post(
        "/search/batch",
        response_model=BatchResponse,
        responses=_ERRORS,
        openapi_extra=users.OPENAPI | batches.body_of(BatchRequest),
    )
    async def search_batch(
        request: Request, min_version: MinVersion = 0, to: Served = asked
    ) -> Response:
        """Several searches at once; each succeeds or fails by itself."""
        after, replica = BackgroundTasks(), to.replica
        async with replica.deadline():
            batches.check_json(request)
            engine = await replica.wait_for_version(min_version, users.user_of(request))
            replica.searches.check()
            await to.intake.read(request, replica.args.max_batch * replica.args.max_filters)
            with replica.searches.slot():
                searches = await batches.read(BatchRequest, request, replica.args.max_batch)
        items = await batches.by_turns(
            searches,
            replica,
            lambda body: _item(replica, to.metrics, engine, body, after),
        )
        return batches.answer(BatchResponse(items=items), {users.MODEL: engine.model.bundle}, after)

    return routes


async def _item(
    replica: Replica, metrics: Metrics, engine: Engine, body: Any, after: BackgroundTasks
) -> BatchItem:
    began = time.perf_counter()
    try:
        with replica.searches.slot():
            async with replica.deadline():
                asked, sent = search_body.of_json(SearchRequest, body, replica.args)
                with replica.further_images(sent):
                    found, _ = await _search(replica, engine, asked, sent, after)
    except Exception as error:
        problem = problems.logged(error, "a search of a batch")
        return BatchItem(status=problem.status_code, problem=problem.problem)
    found.timings = batches.rounded({**found.timings, "total": batches.since(began)})
    metrics.search(found.timings, replica.searches.busy)
    tracing.steps(found.timings)
    return BatchItem(status=200, response=found)


async def _search(
    replica: Replica,
    engine: Engine,
    asked: SearchRequest,
    sent: list[QueryImage],
    after: BackgroundTasks,
) -> tuple[SearchResponse, int]:
    """Return the answer with the milliseconds of its steps, and the size of its batch.

    `after` gets what is to be done once the answer has gone out.
    """
    began = time.perf_counter()
    images = await batches.fetched(replica, sent)
    query = await replica.prepare(engine, asked, images)
    decode_ms = batches.since(began)
    began = time.perf_counter()
    answer = await replica.answer(engine, query)
    steps = {"encode": 1000 * answer.encode_s, "search": 1000 * answer.search_s}
    rerank_ms = 1000 * answer.rerank_s
    wait_ms = max(0.0, batches.since(began) - sum(steps.values()) - rerank_ms)
    timings = {"decode": decode_ms, "wait": wait_ms, **steps}
    if query.rerank_depth:
        timings["rerank"] = rerank_ms
    explored = None
    if (recorder := replica.recorder) is not None:
        results, explored = recorder.shown(answer.results, asked.offset)
        answer = replace(answer, results=results)
    total = await _total(replica, query)
    found = _response(replica.gallery, engine, query, answer, timings, total)
    if recorder is not None:
        recorder.record(asked, found, engine.bundle.manifest.digest, explored)
    if (asked.session or asked.reference) and answer.image_D is not None:
        found.history = history.pack(history.after(query, answer.image_D), engine.fingerprint)
    if asked.category or asked.attributes or asked.among:
        found.warnings += await replica.count(
            lambda: filters.warnings(query.view, asked.category, asked.attributes, asked.among)
        )
    if query.query.arrangement is not None:
        found.warnings += await replica.count(
            lambda: filters.arranged(query, len(found.results), found.total)
        )
    if replica.shadow is not None and replica.shadow.samples():
        image_ids = [result.image_id for result in found.results]
        after.add_task(replica.shadow.offer, asked, images, image_ids)
    return found, answer.batch


def _response(
    gallery: str,
    engine: Engine,
    query: Prepared,
    answer: Answer,
    timings: dict[str, float],
    total: int,
) -> SearchResponse:
    warnings = [*batches.cut_off(query), *_not_reranked(engine, query, answer)]
    return SearchResponse(
        query_id=uuid4().hex,
        results=[
            # What we made ourselves needs no check, and there are many of them.
            SearchResult.model_construct(
                image_id=found.image_id,
                category=found.category,
                attributes=found.attributes,
                thumbnail=thumbnail_url(found.image_id, gallery),
                score=found.score,
                relative_score=found.relative_score,
                rerank_score=found.rerank_score,
                boosted_score=found.boosted_score,
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
        return ["rerank_depth changes nothing: only searches of one image and a text are re-ranked"]
    return []


async def _total(replica: Replica, query: Prepared) -> int:
    """Return how many images the search chose among."""
    allowed, view, without = query.query.allowed, query.view, query.left_out
    if allowed is None and not without:
        return len(view)
    return await replica.count(lambda: view.count(allowed, without=without))


def _server_timing(timings: dict[str, float], batch: int) -> str:
    return ", ".join(
        [
            *(f"{step};dur={milliseconds}" for step, milliseconds in timings.items()),
            f'batch;desc="{batch}"',
        ]
    )
