"""The page at /: plain files, without a build step and without any address outside."""

from pathlib import Path

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.security.asgi import HttpMiddleware, route_path

FOLDER = Path(__file__).parents[1] / "web"
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


def add(app: FastAPI) -> None:
    """Let `app` answer / and /web/."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(FOLDER / "index.html")

    app.mount("/web", StaticFiles(directory=FOLDER), name="web")


class PageHeaders(HttpMiddleware):
    """Adds headers that keep a browser from running what others put into a picture or a name.

    `elsewhere`: pages of other origins may use the service, and so its pictures.
    """

    def __init__(self, app: ASGIApp, *, elsewhere: bool = False) -> None:
        super().__init__(app)
        self._used_by = "cross-origin" if elsewhere else "same-origin"

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = route_path(scope)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = self._used_by
                if path == "/" or path.startswith("/web/"):
                    # An older page must not meet a newer service.
                    headers["Cache-Control"] = "no-cache"
                # Swagger's page has inline parts.
                if not path.startswith(("/docs", "/static-offline-docs")):
                    headers["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive, with_headers)
