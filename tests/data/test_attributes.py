import json
from pathlib import Path
from typing import Any

import pytest

from raycd.data import attributes
from raycd.data.folder import Folder
from raycd.errors import DataError


def read(root: Path, content: Any) -> dict[str, dict[str, str]]:
    (root / "attributes.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return attributes.read(Folder(str(root)))


def test_without_the_file_there_are_no_attributes(tmp_path: Path) -> None:
    assert attributes.read(Folder(str(tmp_path))) == {}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("blue", "blue"),
        (" Navy blue ", "Navy blue"),
        (7, "7"),
        (36.0, "36"),
        (0.5, "0.5"),
        (True, "true"),
        (-1, "-1"),
    ],
)
def test_values_become_text(tmp_path: Path, value: object, text: str) -> None:
    assert read(tmp_path, {"a": {"x": value}}) == {"a": {"x": text}}


@pytest.mark.parametrize("value", [None, "", " "])
def test_a_value_that_says_nothing_is_no_attribute(tmp_path: Path, value: object) -> None:
    assert read(tmp_path, {"a": {"x": value, "y": "1"}, "b": {}}) == {"a": {"y": "1"}, "b": {}}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ([], ["attributes.json has the wrong shape", "image id -> {name: value}"]),
        ({"a": "blue"}, ["attributes.json, image a has the wrong shape", "'blue'", "an object"]),
        (
            {"a": {"colour": ["blue", "red"]}},
            ["image a has the wrong shape", "{'colour': ['blue', 'red']}", "a text"],
        ),
        ({"a": {"colour": {"is": "blue"}}}, ["image a has the wrong shape"]),
        ({"a": {"": "blue"}}, ["image a has the wrong shape", "a name"]),
        ('{"a": {"x": NaN}}', ["image a has the wrong shape", "nan"]),
        ('{"a": ', ["attributes.json is not valid JSON", "line 1"]),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: Any, parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    for part in parts:
        assert part in str(caught.value)
