"""Who asks, for what has to be the same for a user each time."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from raycd.api.requests import USER

MODEL = "Raycd-Model"  # header of an answer: the bundle that made it, by the prefix of its digest

OPENAPI: dict[str, Any] = {
    "parameters": [
        {
            "name": USER,
            "in": "header",
            "description": "any text that names the user, who then gets the same model each time",
            "schema": {"type": "string"},
        }
    ]
}


def named(request: Request) -> str:
    """Return the user whom a request names; "" where it names none."""
    return request.headers.get(USER, "").strip()


def user_of(request: Request) -> str:
    """Return what tells the user of a request from others.

    That is the header, else the API key, else the client's address: as the first proxy saw it, or
    as we do.
    """
    headers = request.headers
    address = request.client.host if request.client else ""
    return (
        named(request)
        or headers.get("authorization", "").strip()
        or headers.get("x-forwarded-for", "").partition(",")[0].strip()
        or address
    )
