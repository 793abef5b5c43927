import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from raycd.report.funnel import facts, funnel
from raycd.report.page import (
    Curve,
    Histogram,
    PseudoExample,
    Report,
    ShownQuery,
    ShownResult,
    Sizes,
    render,
)
from raycd.report.pictures import data_uri
from raycd.report.table import final_table, gains, recall_cells, recall_table, verdicts

HOSTILE = '<script>alert("x")</script> & <img src=x onerror=y> "quoted"'


def metrics() -> dict[str, Any]:
    def recalls(at_10: float, at_50: float) -> dict[str, dict[str, float]]:
        cell = {"recall@10": at_10, "recall@50": at_50}
        return {"dress": cell, "shirt": {**cell, "recall@50": 0.9}, "toptee": cell, "average": cell}

    return {
        "preset": "demo",
        "protocol": "original",
        "seed": 0,
        "variants": {
            "zero_shot": recalls(0.28104, 0.451),
            "fine_tuned": recalls(0.73, 0.88),
            "clip_cd": recalls(0.83456, 0.9),
        },
        "counts": {
            "gallery": {"dress": 1000, "shirt": 1000},
            "queries": {"dress": 500},
            "missing_images": 2,
        },
        "seconds": {"stage1": 133.2, "mine": 8.0},
    }


def garment(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Draw a coloured shape."""
    color = tuple(int(v) for v in np.random.default_rng(seed).integers(40, 220, 3))
    image = Image.new("RGB", size, "#eeeae4")
    width, height = size
    ImageDraw.Draw(image).polygon(
        [
            (0.35 * width, 0.1 * height),
            (0.65 * width, 0.1 * height),
            (0.85 * width, 0.9 * height),
            (0.15 * width, 57),
        ],
        fill=color,
    )
    return image


def sample() -> Report:
    epochs = [
        {"epoch": i, "loss": 3 / i, "seconds": 5.0, "kind": "pseudo" if i % 6 == 0 else "original"}
        | ({} if i % 6 == 0 else {"recall@10": 0.9 - 0.5 / i})
        for i in range(1, 25)
    ]
    step = {
        "candidates": 48000,
        "after_similarity": 21000,
        "after_s_max": 9100,
        "after_alpha": 3100,
    }
    groups = [
        {"side": side, "category": category, **step}
        for side in ("reference", "target")
        for category in ("dress", "shirt", "toptee")
    ]
    images = [garment(i) for i in range(12)]

    def three(first: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        return images[first], images[first + 1], images[first + 2]

    return Report(
        run="demo",
        metrics=metrics(),
        curves=[Curve("stage1", "selection", epochs[:5], 5), Curve("stage2", "val", epochs, 23)],
        mining={name: 6 * count for name, count in step.items()} | {"groups": groups},
        histograms=[
            Histogram(
                "Similarity of neighbours",
                np.random.default_rng(0).beta(8, 1.5, 4000),
                {"eps_low": 0.9, "eps_high": 0.995},
            ),
            Histogram(
                "Matching score", np.random.default_rng(1).normal(0.55, 0.1, 4000), {"alpha": 0.6}
            ),
        ],
        pseudo=[
            PseudoExample(
                "has long sleeves", *three(0), "reference", 0.951, 0.71, "good", "eps_high", 0.044
            ),
            PseudoExample(
                HOSTILE, *three(3), "target", 0.90042, 0.64, "borderline", "eps_low", 0.00042
            ),
            PseudoExample("is red", *three(6), "target", 0.93, 0.6, "refused", "alpha", 0.0),
            PseudoExample(
                "is blue", *three(6), "target", 0.93, 0.599997, "refused", "alpha", 0.000003
            ),
        ],
        queries=[
            ShownQuery(
                images[0],
                "is blue with long sleeves and has a striped pattern",
                [
                    ShownResult(images[i], f"dress-{i:05}", 0.9 - i / 50, i == 1)
                    for i in range(1, 7)
                ],
                rank=1,
                category="dress",
            ),
            ShownQuery(
                images[7],
                HOSTILE,
                [
                    ShownResult(None if i == 3 else images[i], f"B00{i}", 0.7 - i / 50)
                    for i in range(1, 6)
                ],
                rank=17,
                category="shirt",
                target=images[9],
            ),
        ],
        missing={
            "missing": 2,
            "by_reason": {"missing": 1, "truncated": 1},
            "images": {"<b>": "missing", "c": "x"},
        },
        warnings=["2 images are <missing>"],
        config="preset: demo\ntracking:\n  uri: postgresql://ann:secret@db/mlflow\n",
        versions={"raycd": "0.1.0", "torch": "2.15.0"},
    )


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


def test_the_best_of_each_column_is_marked_ties_and_all() -> None:
    recall = recall_cells(
        {
            "variants": {
                "a": {"x": {"recall@1": 0.5}},
                "b": {"x": {"recall@1": 0.500001}},
                "c": {"x": {}},
            }
        }
    )
    assert [[(cell.text, cell.best) for cell in cells] for _, cells in recall.rows] == [
        [("50.00", True)],
        [("50.00", True)],
        [("–", False)],
    ]


def test_one_variant_alone_is_not_called_the_best() -> None:
    recall = recall_cells({"variants": {"a": {"x": {"recall@1": 0.5}}}})
    assert not recall.rows[0][1][0].best


def test_the_terminal_table_lines_up() -> None:
    assert recall_table(metrics()).splitlines() == [
        "                   dress           shirt           toptee          average",
        "recall, %           R@10    R@50    R@10    R@50    R@10    R@50    R@10    R@50",
        "zero-shot CLIP     28.10   45.10   28.10   90.00   28.10   45.10   28.10   45.10",
        "fine-tuned CLIP    73.00   88.00   73.00   90.00   73.00   88.00   73.00   88.00",
        "CLIP-CD            83.46   90.00   83.46   90.00   83.46   90.00   83.46   90.00",
    ]


def test_the_terminal_table_makes_room_for_long_categories() -> None:
    recalls = {"a very long category": {"recall@10": 0.5}, "average": {"recall@10": 0.25}}
    lines = recall_table({"variants": {"clip_cd": recalls}}).splitlines()
    assert lines[0].split("   ")[-1] == "average"
    assert lines[2].split() == ["CLIP-CD", "50.00", "25.00"]
    assert recall_table({"variants": {}}) == ""


def test_gains_are_points_between_neighbouring_variants() -> None:
    assert gains(metrics()) == [
        ("zero-shot CLIP", "fine-tuned CLIP", "+44.90"),
        ("fine-tuned CLIP", "CLIP-CD", "+10.46"),
    ]


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


def results(**averages: float) -> dict[str, Any]:
    variants = {
        name: {"hat": {"recall@10": value}, "average": {"recall@10": value}}
        for name, value in averages.items()
    }
    return {"variants": variants, "counts": {"gallery": {"hat": 1000}, "queries": {"hat": 64}}}


def test_a_model_that_is_worse_than_its_predecessors_is_said_first() -> None:
    worse = results(zero_shot=0.0156, fine_tuned=0.3, clip_cd=0.02)
    said = ["CLIP-CD is worse than fine-tuned CLIP: R@10 2.00 instead of 30.00"]
    assert verdicts(worse) == said
    assert final_table(worse).splitlines()[0] == f"warning: {said[0]}"
    page = render(Report(run="x", metrics=worse, warnings=["something else"]))
    assert page.index(said[0]) < page.index("something else") < page.index("zero-shot CLIP</th>")


def test_a_model_that_finds_no_more_than_chance_has_failed() -> None:
    failed = results(zero_shot=0.0156, fine_tuned=0.3, clip_cd=0.0)
    assert verdicts(failed) == [
        "CLIP-CD has failed: R@10 0.00 is no better than images drawn at random (1.00)",
        "CLIP-CD is worse than zero-shot CLIP: R@10 0.00 instead of 1.56",
        "CLIP-CD is worse than fine-tuned CLIP: R@10 0.00 instead of 30.00",
    ]


def test_a_model_that_is_as_it_should_be_has_no_verdict() -> None:
    good = metrics()
    assert verdicts(good) == verdicts({"variants": {}}) == verdicts({}) == []
    assert verdicts(results(zero_shot=0.2, fine_tuned=0.2, sum=0.2)) == []
    assert final_table(good) == recall_table(good)
    assert 'class="warnings' not in render(Report(run="x", metrics=good))
    few = results(zero_shot=1.0) | {
        "counts": {"gallery": {"hat": 8}}
    }  # whatever is drawn, all of them are
    assert verdicts(few) == []


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
