"""The page of a service whose model re-ranks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, Request, expect

from tests.serve.pages import NEEDS_CHROMIUM, answered, ask, found, is_ready

pytestmark = NEEDS_CHROMIUM

REFERENCE = "?image_id=image-4&text=is+blue"


@pytest.fixture(scope="module")
def reranking_url(
    start_replica: Callable[..., str], service_args: Any, bundle_with_head: Callable[[str], Path]
) -> str:
    args = {"bundle": str(bundle_with_head("dcnet")), "max_rerank_depth": 150}
    return start_replica(service_args.model_copy(update=args), "page-dcnet")


@pytest.fixture
def reranking_page(
    opened: Callable[[str], Callable[..., Page]], reranking_url: str
) -> Callable[..., Page]:
    """Return what opens the page of that service."""
    return opened(reranking_url)


def asked(url: str, **fields: Any) -> list[str]:
    """Return what the service itself answers: addresses of pictures, in their order."""
    body = {"image_id": "image-4", "text": "is blue", "top_k": 24, "exclude_reference": True}
    results = httpx.post(f"{url}/v1/search", json=body | fields).raise_for_status().json()
    return [f"v1/images/{one['image_id']}?size=original" for one in results["results"]]


def test_results_are_re_ranked_and_the_time_that_it_took_is_said(
    reranking_page: Callable[..., Page], reranking_url: str
) -> None:
    page = reranking_page(REFERENCE)
    answered(page)
    assert found(page) == asked(reranking_url) != asked(reranking_url, rerank_depth=0)
    expect(page.locator("#status")).to_have_text(
        re.compile(r"^11 of 11 images, re-ranked in \d+(\.\d)? ms$")
    )
    expect(page.locator("#timings")).to_contain_text("rerank ")
    expect(page.locator(".why dt").first).to_have_text("re-ranked")


def test_how_many_are_re_ranked_is_chosen_kept_in_the_link_and_reset(
    reranking_page: Callable[..., Page], reranking_url: str
) -> None:
    page = reranking_page(REFERENCE)
    answered(page)
    page.locator("#options summary").click()
    depth = page.get_by_label("First results to re-rank")
    assert depth.locator("option").all_inner_texts() == ["none", "20", "50", "100", "150"]
    expect(depth.locator("option:checked")).to_have_text("150")
    depth.select_option("none")
    expect(page.locator("#status")).to_have_text("11 of 11 images")
    assert found(page) == asked(reranking_url, rerank_depth=0)
    assert page.url.endswith("rerank_depth=0")
    again = reranking_page(page.url[page.url.index("?") :])
    answered(again)
    assert found(again) == found(page)
    expect(again.locator("#rerank_depth option:checked")).to_have_text("none")
    page.get_by_role("button", name="Reset the options").click()
    expect(page.locator("#status")).to_contain_text("re-ranked in")
    assert "rerank_depth" not in page.url


def test_a_number_of_a_link_is_taken_up_and_one_that_makes_no_sense_is_not(
    reranking_page: Callable[..., Page], reranking_url: str
) -> None:
    page = reranking_page(f"{REFERENCE}&rerank_depth=3")
    answered(page)
    assert found(page) == asked(reranking_url, rerank_depth=3)
    expect(page.locator("#rerank_depth option:checked")).to_have_text("3")
    page = reranking_page(f"{REFERENCE}&rerank_depth=-1")
    answered(page)
    expect(page.locator("#rerank_depth option:checked")).to_have_text("150")
    page = reranking_page(f"{REFERENCE}&rerank_depth=5000&top_k=5000")
    answered(page)  # within the limits of this service
    assert found(page) == asked(reranking_url)
    expect(page.locator("#rerank_depth option:checked")).to_have_text("150")


def test_an_answer_without_re_ranking_says_so(
    reranking_page: Callable[..., Page], reranking_url: str
) -> None:
    late = "the results are not re-ranked: the answer would have come too late (timeout_s)"
    page = reranking_page()

    def without(route: Any) -> None:
        answer = route.fetch()
        body = answer.json()
        for one in body["results"]:
            one["rerank_score"] = None
        route.fulfill(response=answer, json=body | {"warnings": [late]})

    page.route("**/v1/search", without)
    ask(page, "is blue")
    expect(page.locator("#warnings li")).to_have_text(late)
    expect(page.locator("#status")).not_to_contain_text("re-ranked")


def test_a_model_that_re_ranks_nothing_has_no_such_option(page: Page) -> None:
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request))
    page.locator("#options summary").click()
    expect(page.locator("#negative_text")).to_be_visible()
    expect(page.locator("#rerank_depth")).to_be_hidden()
    expect(page.get_by_text("First results to re-rank")).to_be_hidden()
    ask(page, "is blue")
    is_ready(page)
    [search] = [request for request in sent if request.url.endswith("/v1/search")]
    assert "rerank_depth" not in (search.post_data or "")
    page.goto(f"{page.url}&rerank_depth=50")
    answered(page)
    expect(page.locator("#warnings li")).to_have_count(0)
