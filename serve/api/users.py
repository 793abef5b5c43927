"""Who asks, for what has to be the same for a user each time."""

from __future__ import annotations

from typing import Any

from fastapi import Request

HEADER = "Raycd-User"

OPENAPI: dict[str, Any] = {
    "parameters": [
        {
            "name": HEADER,
            "in": "header",
            "description": "any text that names the user, who then gets the same model each time",
            "schema": {"type": "string"},
        }
    ]
}


def user_of(request: Request) -> str:
    """Return what tells the user of a request from others.

    That is the header, else the API key, else the client's address: as the first proxy saw it, or
    as we do.
    """
    headers = request.headers
    address = request.client.host if request.client else ""
    return (
        headers.get(HEADER, "").strip()
        or headers.get("authorization", "").strip()
        or headers.get("x-forwarded-for", "").partition(",")[0].strip()
        or address
    )
