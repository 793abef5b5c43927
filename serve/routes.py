"""The HTTP interface, over anything that can search: the deployment in service.py, or a stand-in in a test."""

import asyncio
from typing import Annotated, Protocol

from fastapi import FastAPI, File, Form, HTTPException, UploadFile

from raycd import __version__
from raycd.search import Prepared, Result
from serve import problems
from serve.schemas import Health, ModelInfo, Problem, SearchResponse, SearchResult, ServeArgs

MAX_TEXT = 1000  # characters; the tokenizer's time grows with the square of a word's length


class Service(Protocol):
    """What the routes need."""

    args: ServeArgs
    info: ModelInfo
    default_top_k: int
    max_top_k: int

    async def prepare(self, image: bytes, text: str, top_k: int) -> Prepared:
        """Decode and preprocess. Raises BrokenImage and DataError."""
        ...

    async def answer(self, query: Prepared) -> list[Result]:
        """Search."""
        ...


def build_app(service: Service) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(title="raycd", version=__version__, summary="Composed image retrieval: an image and a sentence")
    problems.add_handlers(app)
    app.add_middleware(problems.BodyLimit, max_bytes=service.args.max_body_bytes)
    refusals = {
        status: {"model": Problem, "content": {problems.MEDIA_TYPE: {}}, "description": description}
        for status, description in (
            (413, "The request is too large"),
            (422, "A field is missing or out of range, or the image is broken"),
            (503, "The service is too busy"),
        )
    }

    @app.post("/v1/search", responses=refusals)  # type: ignore[arg-type]
    async def search(
        image: Annotated[UploadFile, File(description="the reference image")],
        text: Annotated[str, Form(max_length=MAX_TEXT, description="what to change: is blue with long sleeves")],
        top_k: Annotated[int | None, Form(ge=1, le=service.max_top_k, description="results wanted")] = None,
    ) -> SearchResponse:
        """Find the images that look like `image`, changed as `text` says."""
        try:
            async with asyncio.timeout(service.args.timeout_s):
                query = await service.prepare(await image.read(), text, top_k or service.default_top_k)
                # Shielded: a batch goes on for the others when one of its clients has given up.
                results = await asyncio.shield(service.answer(query))
        except TimeoutError:
            detail = f"the search took longer than {service.args.timeout_s:g} s"
            raise HTTPException(503, detail, headers={"Retry-After": "5"}) from None
        return SearchResponse(
            results=[SearchResult(**result._asdict()) for result in results],
            text_truncated=query.truncated,
            model=service.info,
        )

    @app.get("/healthz")
    async def healthz() -> Health:
        """Answers where the model does: a replica that cannot answer a query of its own never starts."""
        return Health()

    return app
