import pytest

from raycd.data.missing import ImageReport
from raycd.errors import DataError

REASONS = {"b": "missing", "a": "truncated", "c": "missing", "d": "empty"}


def test_reasons_are_counted_most_frequent_first() -> None:
    assert list(ImageReport(REASONS).counts().items()) == [
        ("missing", 2),
        ("empty", 1),
        ("truncated", 1),
    ]


def test_an_image_noted_twice_counts_once_with_its_first_reason() -> None:
    report = ImageReport()
    report.add("a", "empty")
    report.add("a", "missing")
    assert report.reasons == {"a": "empty"}
    assert len(report) == 1


def test_a_share_at_the_limit_passes() -> None:
    ImageReport(REASONS).check(total=40, max_missing=0.1)
    ImageReport().check(total=0, max_missing=0.0)


def test_a_share_above_the_limit_names_share_limit_examples_and_list() -> None:
    with pytest.raises(DataError) as caught:
        ImageReport(REASONS).check(total=16, max_missing=0.05, listed="runs/x/images.json")
    message = str(caught.value)
    assert (
        "4 of 16 images (25.0%) are missing or broken: 2 missing, 1 empty, 1 truncated" in message
    )
    assert (
        "b (missing), a (truncated), c (missing), ...; the list is in runs/x/images.json" in message
    )
    assert "at most 5.0% (data.max_missing)" in message


def test_the_report_of_a_stage_holds_every_image() -> None:
    assert ImageReport({"b": "missing", "a": "empty"}).to_dict() == {
        "missing": 2,
        "by_reason": {"empty": 1, "missing": 1},
        "images": {"a": "empty", "b": "missing"},
    }
