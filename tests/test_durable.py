from pathlib import Path

import pytest

from raycd.durable import replacing


def write(folder: Path, text: str, error: type[BaseException] | None = None) -> None:
    with replacing(folder) as fresh:
        (fresh / "inner").mkdir()
        (fresh / "inner" / "file").write_text(text)
        assert not folder.exists() or (folder / "inner" / "file").read_text() != text
        if error:
            raise error


def test_the_folder_appears_when_whole_and_replaces_an_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "bundle"
    for text in ("old", "new"):
        write(folder, text)
        assert (folder / "inner" / "file").read_text() == text
        assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    folder = tmp_path / "bundle"
    write(folder, "old")
    with pytest.raises(error):
        write(folder, "half", error)
    assert (folder / "inner" / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_change_of_names_puts_the_older_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bundle"
    write(folder, "old")
    rename = Path.rename

    def fail(path: Path, to: Path) -> Path:
        if path.name.endswith(".writing"):
            raise OSError("no")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        write(folder, "new")
    assert (folder / "inner" / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [folder]
