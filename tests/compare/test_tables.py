"""Tables of a comparison: who is compared with whom, and that each form says the same numbers."""

from __future__ import annotations

import csv
import io

import pytest

from raycd.compare import Answers, holm, published
from raycd.compare.lines import Method, Table, against
from raycd.compare.statistics import Difference, Spread
from raycd.compare.writing import Grid, csv_text, difference_text, grid, p_text, spread_text
from raycd.evaluate import Metric

CATEGORIES = ["dress", "dress", "shirt"] * 20
METRICS = [Metric(), Metric(k=50), Metric("dress")]


def method(name: str, *ranks: list[int | None], trained: bool = True) -> Method:
    """Return a method with these ranks for each seed, the same twenty times over."""
    seeds = list(range(len(ranks))) if trained else None
    rows = [row * 20 for row in ranks]
    return Method(name, Answers.of(rows, CATEGORIES, seeds), 1234567, 30, 52310, 12.345)


SUM = method("sum", [1, 99, 99], trained=False)
COMBINER = method("combiner", [1, 9, 99], [1, 11, 99])
CLIP_CD = method("clip_cd", [1, 9, 1], [1, 1, 11])


def table() -> Table:
    methods = [SUM, COMBINER, CLIP_CD]
    lines = against(methods, {one.name: COMBINER for one in methods}, METRICS)
    return Table("epochs-pseudo", "At equal epochs", METRICS, lines, ["5 seeds_of val."])


def test_a_line_has_the_methods_spread_and_its_difference_to_the_baseline() -> None:
    lines = {rows[0].method.name: rows for rows in table().lines}
    assert lines["combiner"][0].difference is None
    assert lines["combiner"][0].spread == COMBINER.answers.spread(Metric())
    assert lines["clip_cd"][2].metric == Metric("dress")
    for name, one in (("sum", SUM), ("clip_cd", CLIP_CD)):
        for line in lines[name]:
            assert line.difference == one.answers.minus(COMBINER.answers, line.metric)
            assert line.baseline == "combiner"


def test_p_is_corrected_for_all_methods_of_a_table_under_one_metric() -> None:
    columns = list(zip(*table().lines, strict=True))
    for column in columns:
        raw = [None if line.difference is None else line.difference.p for line in column]
        assert [line.corrected_p for line in column] == holm(raw)
    assert any(
        line.corrected_p != line.difference.p
        for column in columns
        for line in column
        if line.difference is not None and line.difference.p is not None
    )


def test_without_a_baseline_nothing_is_compared() -> None:
    [[line]] = against([SUM], {}, [Metric()])
    assert (line.difference, line.corrected_p, line.baseline) == (None, None, "")


def test_markdown_has_averages_with_deviation_interval_difference_and_p() -> None:
    shown = grid(table()).markdown()
    head, _, still, baseline, clip_cd = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in shown.splitlines()
        if line.startswith("|")
    ]
    assert shown.startswith("**At equal epochs**\n\n| method")
    assert shown.endswith("\n\n5 seeds_of val.")
    assert head == [
        *("method", "R@10", "R@50", "Δ R@10", "p", "Δ R@50", "p"),
        *("parameters", "epochs", "triplets seen", "training, s"),
    ]
    # The sum finds half of dress and no shirt: 25%, with no seed to vary.
    assert still[:2] == ["sum", "25.00"]
    assert still[-3:] == ["–", "–", "–"]
    assert baseline[3:7] == ["–"] * 4
    line = table().lines[2][0]
    assert line.difference is not None
    assert clip_cd[1] == spread_text(line.spread)
    assert clip_cd[3] == difference_text(line.difference)
    assert clip_cd[-4:] == ["1,234,567", "30", "52,310", "12.3"]


def test_texts_of_numbers() -> None:
    assert spread_text(Spread(0.62667, 0.00214, 0.62401, 0.62933)) == "62.67 ± 0.21 [62.40, 62.93]"
    assert spread_text(Spread(0.5, None, None, None)) == "50.00"
    assert difference_text(Difference(0.0274, 0.0211, 0.0338, 0.001)) == "+2.74 [+2.11, +3.38]"
    assert difference_text(Difference(-0.5, None, None, None)) == "-50.00"
    assert (p_text(0.04321), p_text(0.0004), p_text(None)) == ("0.043", "< 0.001", "–")


def test_latex_is_a_booktabs_table_whose_text_is_escaped() -> None:
    shown = Grid("50% & more", ["a_b", "Δ"], [["1 ± 2", "< 0.001"]], ["val"]).latex()
    assert shown.splitlines() == [
        r"\begin{table}",
        r"\centering",
        r"\caption{50\% \& more. val}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"a\_b & $\Delta$ \\",
        r"\midrule",
        r"1 $\pm$ 2 & $<$ 0.001 \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


def test_csv_has_every_metric_as_fractions() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text([table()]))))
    assert [(row["method"], row["metric"]) for row in rows] == [
        (name, str(metric)) for name in ("sum", "combiner", "clip_cd") for metric in METRICS
    ]
    line, row = table().lines[2][0], rows[6]
    assert line.difference is not None
    assert float(row["mean"]) == line.spread.mean
    assert float(row["difference_low"]) == line.difference.low
    assert float(row["p_holm"]) == line.corrected_p
    assert (row["seeds"], row["queries"], row["baseline"]) == ("2", "60", "combiner")
    assert (rows[8]["metric"], rows[8]["queries"]) == ("dress/recall@10", "40")
    assert (rows[3]["baseline"], rows[3]["difference"], rows[0]["sd"]) == ("", "", "")


def test_the_papers_averages_that_do_not_add_up_are_marked() -> None:
    wrong = [
        (row.method, k)
        for row in published.table1()
        for k, right in zip(published.KS, row.adds_up(), strict=True)
        if not right
    ]
    assert wrong == [("ComAE", 10), ("Heteroge", 10), ("Clip4Cir", 10), ("CLIP-CD", 50)]
    means = {row.method: row.means() for row in published.table1()}
    assert means["ComAE"][0] == pytest.approx(14.57, abs=0.005)
    assert means["Clip4Cir"][0] == pytest.approx(38.40, abs=0.005)
    assert means["CLIP-CD"][1] == pytest.approx(64.69, abs=0.005)


def test_published_rows_stand_beside_ours_with_their_protocols() -> None:
    categories = [*published.CATEGORIES] * 2
    ranks: list[list[int | None]] = [[1, 11, 51, 1, 1, 1], [1, 11, 51, 51, 1, 1]]
    ours = Method("clip_cd", Answers.of(ranks, categories, [0, 1]))
    found = published.beside([ours], "original")
    by_name = {row[0]: row[1:] for row in found.rows}
    assert by_name["CLIP-CD (published)"] == [
        *("original", "37.68", "62.62", "42.44", "63.74", "45.33", "67.72", "41.82", "64.79 †"),
    ]
    assert by_name["DCNet (published)"][0] == "original-masked"
    assert by_name["clip_cd (ours)"][:4] == ["original", "75.00 ± 35.36", "75.00 ± 35.36", "50.00"]
    assert "CLIP-CD R@50 64.69" in found.notes[0]
    assert list(published.table2()) == [
        *("w/o FT", "w/ FT-Text", "w/ FT-Image", "w/ FT-Both"),
        *("w/o Pseudo Data", "w/o Bilinear", "CLIP-CD"),
    ]
