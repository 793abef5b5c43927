"""Benchmarks in parts, of which one may fail."""

from collections.abc import Iterator

import pytest

from jobs.benchmarks.measuring import in_parts


def test_a_part_that_fails_leaves_what_is_known_of_it_and_of_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def rows_of(part: str) -> Iterator[dict[str, float]]:
        yield {f"{part}: images/s": 3.0}
        if part == "mining":
            raise ValueError("no room\non the card")

    rows = in_parts(["mining", "stage1"], rows_of)
    assert {name: value for name, value in rows.items() if not name.endswith(": s")} == {
        "mining: images/s": 3.0,
        "mining: failed": "ValueError: no room on the card",
        "stage1: images/s": 3.0,
    }
    assert "mining: images/s: 3.0\n" in capsys.readouterr().err
