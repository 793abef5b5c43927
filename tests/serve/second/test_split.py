"""Who gets the answers of the second model: always the same users, and as many as asked for."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from serve.api.users import user_of
from serve.second.model import is_second

USERS = [f"user-{number}" for number in range(4000)]


def test_the_share_is_kept_and_whoever_is_in_it_is_in_every_larger_one() -> None:
    before: set[str] = set()
    for share in (0.0, 0.05, 0.3, 1.0):
        chosen = {user for user in USERS if is_second(user, share, "a")}
        assert len(chosen) / len(USERS) == pytest.approx(share, abs=0.03)
        assert before <= chosen
        before = chosen


def test_another_experiment_draws_anew() -> None:
    first, other = ({u for u in USERS if is_second(u, 0.5, name)} for name in ("a", "b"))
    assert len(first & other) / len(USERS) == pytest.approx(0.25, abs=0.03)


def request(address: str = "10.0.0.1", **headers: str) -> Request:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": named, "client": (address, 1)})


def test_a_user_is_who_the_header_names_else_the_key_else_the_address() -> None:
    every = {
        "raycd_user": " ann ",
        "authorization": "Bearer k",
        "x_forwarded_for": "1.2.3.4, 5.6.7.8",
    }
    assert user_of(request(**every)) == "ann"
    assert user_of(request(**every | {"raycd_user": " "})) == "Bearer k"
    assert user_of(request(x_forwarded_for=every["x_forwarded_for"])) == "1.2.3.4"
    assert user_of(request()) == "10.0.0.1"
    assert user_of(Request({"type": "http", "headers": [], "client": None})) == ""
