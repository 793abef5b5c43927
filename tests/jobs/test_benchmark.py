"""What `jobs/benchmark.py` refuses before it measures anything."""

import pytest

from jobs import benchmark


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "nothing to measure is named"),
        ("scale --only ivf", "scale does not read --only"),
        ("mine --photos photos", "expected: it with embed or decoding"),
        ("scale --images -5", "--images: impossible value"),
        ("line --only service", "name demo, too"),
        ("gpu --only speed", "--only names no part"),
        ("mine --images 64", "expected: 65 or more"),
        ("mine --candidates 0", "--candidates: impossible value"),
        ("serve --seconds 0", "--seconds: impossible value"),
        ("feedback --sessions -10", "--sessions: impossible value"),
    ],
)
def test_an_option_that_says_nothing_or_the_impossible_is_refused(
    given: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.program(given.split()) == 2
    assert said in capsys.readouterr().err
