import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from raycd.report.funnel import facts, funnel
from raycd.report.page import Curve, Histogram, PseudoExample, Report, Sizes, render
from raycd.report.pictures import data_uri
from tests.report.samples import metrics, sample


@pytest.fixture(scope="module")
def page() -> str:
    return render(sample())


class Tags(HTMLParser):
    """A list of the tags and their attributes; it refuses tags closed in the wrong order."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags


def test_the_page_holds_numbers_protocol_and_what_chose_the_checkpoints(page: str) -> None:
    for text in (
        "28.10",
        "<strong>83.46</strong>",
        "CLIP-CD",
        "<code>original</code>",
        "<b>+44.90</b>",
        "2 min 13 s",
    ):
        assert text in page
    assert "the reference image stays in it" in page
    assert "held out from train" in page
    assert "as published work does" in page
    assert "+10.46" in page


def test_texts_of_the_data_set_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;missing&gt;" in page
    assert "<code>&lt;b&gt;</code>" in page


def test_the_page_is_whole_html_that_refers_to_nothing_outside(page: str) -> None:
    assert "http" not in page
    for tag, attributes in parsed(page).tags:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                assert (attributes[name] or "").startswith(("data:image/jpeg;base64,", "#"))
    assert not re.search(r"url\((?!#)", page)


def test_every_image_stands_in_the_page_and_a_missing_one_leaves_a_place(page: str) -> None:
    images = [attributes for tag, attributes in parsed(page).tags if tag == "img"]
    assert len(images) == 4 * 3 + (1 + 5) + (
        1 + 5
    )  # examples; two queries, one with an absent result and a target
    assert page.count('class="absent') == 1


def test_the_target_alone_is_framed(page: str) -> None:
    assert len(re.findall(r'<li class="target">', page)) == 1
    assert len(re.findall(r'<li class="target apart">', page)) == 1


def test_examples_stand_in_their_groups_and_say_which_threshold_is_near_and_by_how_much(
    page: str,
) -> None:
    headings = ["<h3>Good</h3>", "<h3>Borderline</h3>", "<h3>Just refused</h3>"]
    good, borderline, refused = (
        part.split("</section>")[0] for part in re.split("|".join(headings), page)[1:]
    )
    assert [part.count('class="example"') for part in (good, borderline, refused)] == [1, 1, 2]
    assert "far from every threshold" in good
    assert "<br>" not in good
    assert "<b>similarity 0.00042 above eps_low</b>" in borderline
    assert "<b>score exactly alpha</b>" in refused
    assert "<b>score 0.000003 below alpha</b>" in refused


def test_a_group_without_examples_has_no_heading() -> None:
    example = PseudoExample(
        "is red", None, None, None, "target", 0.9, 0.7, "borderline", "eps_high", 0.0123
    )
    page = render(Report(run="x", metrics={}, pseudo=[example]))
    assert re.findall("<h3>(.*)</h3>", page) == ["Borderline"]
    assert "similarity 0.012 below eps_high" in page


def test_the_same_data_gives_the_same_bytes(page: str) -> None:
    assert render(sample()) == page


def test_passwords_of_the_settings_are_left_out(page: str) -> None:
    assert "secret" not in page
    assert "postgresql://ann:***@db/mlflow" in page


def test_a_run_with_metrics_alone_has_a_page() -> None:
    page = render(Report(run="bare", metrics={"variants": {}}))
    assert parsed(page).tags
    assert "<table" not in page


def test_curves_take_the_colours_of_the_page(page: str) -> None:
    assert page.count("<svg") == 6
    assert "var(--first)" in page
    assert "#01020" not in page


def test_text_with_dollars_is_not_typeset_as_mathematics() -> None:
    page = render(Report(run="x", metrics={}, histograms=[Histogram("$a <b", np.arange(3.0))]))
    assert "$a &lt;b" in page


def test_the_funnel_reads_what_the_miner_counts() -> None:
    counts = {
        "candidates": 40,
        "after_alpha": 6,
        "groups": [
            {"category": "dress", "side": "reference", "candidates": 10, "after_alpha": 4},
            {"category": "dress", "side": "target", "candidates": 30, "after_alpha": 2},
        ],
        "images_without_substitute": 3,
        "best_score": None,
        "settings": {"alpha": 0.6},
    }
    found = funnel(counts)
    assert found.steps == ["candidates", "after alpha"]
    assert found.rows == [
        ("reference · dress", [(10, 1.0), (4, 0.4)]),
        ("target · dress", [(30, 1.0), (2, 2 / 30)]),
        ("total", [(40, 1.0), (6, 0.15)]),
    ]
    assert facts(counts) == [("images without substitute", 3)]
    assert "images without substitute 3" in render(Report(run="x", metrics={}, mining=counts))


def test_a_funnel_of_no_candidates_has_empty_bars_and_one_of_no_counts_no_rows() -> None:
    found = funnel({"candidates": 0, "after_alpha": 0, "groups": []})
    assert found.rows == [("total", [(0, 0.0), (0, 0.0)])]
    assert funnel({}).rows == []
    assert facts({}) == []


def test_of_many_missing_images_the_rest_is_counted_though_the_record_lists_fewer() -> None:
    """A stage's record has the first thousand alone."""
    listed = {f"image-{number}": "missing" for number in range(1000)}
    many = {"missing": 5000, "by_reason": {"missing": 5000}, "images": listed}
    page = render(dataclasses.replace(sample(), missing=many))
    assert page.count("<code>image-") == 500
    assert "and 4500 more: missing_images.json" in page


def test_a_missing_image_gives_no_data_uri() -> None:
    assert data_uri(None) == ""
    assert data_uri(Image.new("RGBA", (10, 10))).startswith("data:image/jpeg;base64,")


def test_the_sizes_of_the_galleries_stand_beside_the_curves() -> None:
    epochs = [{"epoch": number, "loss": 1.0, "recall@10": 0.2} for number in range(2)]
    sizes = {"the held-out triplets": Sizes(64, [40, 120]), "val": Sizes(700, [1000])}
    page = render(
        Report(
            run="x",
            metrics=metrics(),
            curves=[Curve("stage1", "selection", epochs, 1)],
            sizes=sizes,
        )
    )
    assert "the held-out triplets: 64 queries in galleries of 40 to 120 images" in page
    assert "val: 700 queries in galleries of 1,000 images" in page
    assert "held-out triplets: " not in render(
        Report(run="x", metrics=metrics(), curves=[Curve("stage1", "val", epochs, 1)])
    )


def test_thresholds_that_are_quantiles_are_said_as_cosines() -> None:
    page = render(
        Report(
            run="x", metrics={}, mining={"candidates": 3}, thresholds="mine.alpha 0.3 is score 0.71"
        )
    )
    assert "mine.alpha 0.3 is score 0.71" in page
