"""The table of recall, and what is said of models that are worse than they should be."""

from typing import Any

from raycd.report.page import Report, render
from raycd.report.table import final_table, gains, recall_cells, recall_table, verdicts
from tests.report.samples import metrics


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
