"""POST /v1/embed and /v1/embed/batch: the vectors of a query, without a search."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from numpy.typing import NDArray

from raycd.api import EmbedBatchRequest, EmbedBatchResponse, Embedding, EmbedItem, QueryRequest
from serve.api import batches, problems, search_body, users
from serve.api.served import Asked, Served
from serve.api.wellformed import known_parameters
from serve.engine.engine import Engine
from serve.engine.queries import QueryImage
from serve.replica import Replica

_ERRORS = problems.responses(400, 403, 404, 408, 409, 413, 415, 422, 503)


def router(asked: Asked, prefix: str) -> APIRouter:
    """Return the routes that embed. A query takes a search's slots, and has a search's limits."""
    routes = APIRouter(prefix=prefix, tags=["embed"], dependencies=[Depends(known_parameters)])

    @routes.post(
        "/embed",
        response_model=Embedding,
        responses=_ERRORS,
        openapi_extra=users.OPENAPI | search_body.EMBED_OPENAPI,
    )
    async def embed(request: Request, to: Served = asked) -> Response:
        """Return the vectors of an image, a text, or a query that is composed of both.

        They are the first model's, whose features the gallery takes, or those of the user whom the
        header names.
        """
        replica = to.replica
        async with replica.deadline():
            replica.searches.check()
            await to.intake.read(request, replica.args.max_filters)
            with replica.searches.slot():
                query, sent = await search_body.read(QueryRequest, request, replica.args)
                engine = replica.engine_of(users.named(request))
                found = await _embed(replica, engine, query, sent)
        return batches.answer(found, {users.MODEL: engine.model.bundle})

    @routes.post(
        "/embed/batch",
        response_model=EmbedBatchResponse,
        responses=_ERRORS,
        openapi_extra=users.OPENAPI | batches.body_of(EmbedBatchRequest),
    )
    async def embed_batch(request: Request, to: Served = asked) -> Response:
        """Several queries at once; each succeeds or fails by itself."""
        replica = to.replica
        async with replica.deadline():
            batches.check_json(request)
            replica.searches.check()
            await to.intake.read(request, replica.args.max_batch * replica.args.max_filters)
            with replica.searches.slot():
                queries = await batches.read(EmbedBatchRequest, request, replica.args.max_batch)
        engine = replica.engine_of(users.named(request))
        items = await batches.by_turns(queries, replica, lambda body: _item(replica, engine, body))
        return batches.answer(EmbedBatchResponse(items=items), {users.MODEL: engine.model.bundle})

    return routes


async def _item(replica: Replica, engine: Engine, body: Any) -> EmbedItem:
    try:
        with replica.searches.slot():
            async with replica.deadline():
                asked, sent = search_body.of_json(QueryRequest, body, replica.args)
                found = await _embed(replica, engine, asked, sent)
    except Exception as error:
        problem = problems.logged(error, "a query of a batch")
        return EmbedItem(status=problem.status_code, problem=problem.problem)
    return EmbedItem(status=200, embedding=found)


async def _embed(
    replica: Replica, engine: Engine, asked: QueryRequest, sent: list[QueryImage]
) -> Embedding:
    began = time.perf_counter()
    with replica.further_images(sent):
        query = await replica.prepare(engine, asked, await batches.fetched(replica, sent))
        decode_ms = batches.since(began)
        features = await replica.encode(engine, query)
    total_ms = batches.since(began)
    return Embedding.model_construct(
        query=features.query_BD.tolist(),
        image=_numbers(features.raw_image_BD),
        text=_numbers(features.raw_text_BD),
        encoder=engine.fingerprint,
        head=engine.model.head,
        warnings=batches.cut_off(query),
        timings=batches.rounded(
            {"decode": decode_ms, "encode": total_ms - decode_ms, "total": total_ms}
        ),
    )


def _numbers(feature_D: NDArray[np.float32]) -> list[float] | None:
    """Return a half of the query; None where the query lacks it."""
    numbers: list[float] = feature_D.tolist()
    return None if np.isnan(feature_D[0]) else numbers
