import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from raycd.data import files


@pytest.fixture(params=["memory", "zip", "file"])
def put(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[[dict[str, bytes]], str]]:
    """Make a store with these files in its folder; return a pattern of their URIs."""
    memory = fsspec.filesystem("memory")

    def make(content: dict[str, bytes]) -> str:
        if request.param == "memory":
            for name, data in content.items():
                memory.pipe(f"/files-test/images/{name}", data)
            return "memory://files-test/images/{}"
        if request.param == "zip":
            with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
                for name, data in content.items():
                    archive.writestr(zipfile.ZipInfo(f"images/{name}"), data)
            return f"zip://images/{{}}::file://{tmp_path}/a.zip"
        for name, data in content.items():
            (tmp_path / name).write_bytes(data)
        return f"file://{tmp_path}/{{}}"

    yield make
    if memory.exists("/files-test"):
        memory.rm("/files-test", recursive=True)


@pytest.mark.parametrize("count", [2, 30], ids=["asked one by one", "listed"])
def test_a_changed_file_of_a_store_has_another_state(
    put: Callable[[dict[str, bytes]], str], count: int
) -> None:
    content = {f"{n}.png": b"%d" % n for n in range(count)}
    pattern = put(content)
    uris = [pattern.format(name) for name in (*content, "lost.png")]
    before = files.states(uris)
    assert [state is None for state in before] == [False] * count + [True]
    assert files.states(uris) == before
    put({**content, "1.png": b"xyz", "lost.png": b"found"})
    after = files.states(uris)
    assert after[1] != before[1]
    assert after[count] is not None


def test_a_path_that_cannot_be_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    paths = [
        None,
        str(tmp_path / "loop"),
        str(tmp_path / ("x" * 300)),
        "a\0b",
        str(tmp_path / "no" / "where"),
    ]
    assert files.states(paths) == [None] * 5


def test_a_folder_that_a_store_does_not_have_has_no_files() -> None:
    assert files.states([f"memory://no/where/{n}.png" for n in range(20)]) == [None] * 20


def test_many_files_cost_one_question_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    asked: list[str] = []

    def spy(name: str) -> Callable[..., Any]:
        real = getattr(type(memory), name)

        def counted(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
            asked.append(f"{name} {path}")
            return real(self, path, *args, **kwargs)

        return counted

    for folder, count in (("a", 500), ("b", 500), ("few", 3)):
        for n in range(count):
            memory.pipe(f"/files-test/{folder}/{n}.png", b"x")
    monkeypatch.setattr(type(memory), "ls", spy("ls"))
    monkeypatch.setattr(type(memory), "info", spy("info"))
    uris = [
        f"memory://files-test/{folder}/{n}.png"
        for folder, count in (("a", 500), ("b", 500), ("few", 3))
        for n in range(count)
    ]
    found = files.states(uris)
    monkeypatch.undo()
    memory.rm("/files-test", recursive=True)
    assert None not in found
    assert sorted(question for question in asked if question.startswith("ls")) == [
        "ls /files-test/a",
        "ls /files-test/b",
    ]
    assert len(asked) == 2 + 3
