"""Which gallery jobs/gallery.py works on, and what it says of one that it cannot use."""

import sqlite3
from pathlib import Path

import pytest

from jobs import feedback, gallery
from raycd.config import cli, settings
from raycd.gallery_db import GalleryDatabase


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("command", ["check", "backup"])
def test_uploaded_pictures_without_a_place_are_a_clear_message(
    url: str,
    gallery_db: GalleryDatabase,
    tmp_path: Path,
    command: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--to", str(tmp_path / "monday")] if command == "backup" else []
    assert gallery.main([command, "--gallery", url, *more]) == 2
    assert "give --pictures" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["check", "backup", "forget"])
def test_a_gallery_that_is_not_there_is_told_and_not_made(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {
        "check": [],
        "backup": ["--to", str(tmp_path / "monday")],
        "forget": ["--encoder", "a"],
    }[command]
    assert gallery.main([command, "--gallery", str(tmp_path / "no.sqlite"), *more]) == 2
    assert "there is no gallery" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [["backup", "--to"], ["restore", "--from"], ["feedback", "--out"]]
)
def test_a_store_in_the_place_of_a_folder_is_refused(
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with GalleryDatabase.open("gallery.sqlite"):
        pass
    before = sorted(tmp_path.iterdir())
    asked = [*options, "s3://key:secret@bucket/monday", "--gallery", "gallery.sqlite"]
    if options[0] == "feedback":
        flags, prog = feedback.flags, "jobs/feedback.py"
        code = cli.run(feedback.main, asked[1:], prog=prog, description="", flags=flags)
    else:
        code = gallery.main(asked)
    said = capsys.readouterr().err
    assert (code, sorted(tmp_path.iterdir())) == (2, before)
    assert f"error: {options[1]} is a folder of this machine, not of a store" in said
    assert "secret" not in said


def test_a_database_of_another_program_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    assert gallery.main(["check", "--gallery", str(file)]) == 2
    assert "schema" in capsys.readouterr().err
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_password_is_never_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql://raycd:topsecret@127.0.0.1:1/raycd"
    for options in (["--gallery", url], []):
        assert gallery.main(["check", *options]) == 2
        said = capsys.readouterr()
        assert "topsecret" not in said.out + said.err
        assert said.err.startswith("error: ")
        assert ("RAYCD_SERVE__GALLERY" in said.err) == bool(options)
        monkeypatch.setenv("RAYCD_SERVE__GALLERY", url)


def test_the_gallery_may_be_named_by_the_environment_of_the_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gallery.main(["check"]) == 2
    assert "no gallery is named" in capsys.readouterr().err
    monkeypatch.setenv("RAYCD_SERVE__GALLERY", str(tmp_path / "no.sqlite"))
    assert gallery.main(["check"]) == 2
    assert "there is no gallery" in capsys.readouterr().err


def test_pictures_of_the_environment_are_of_its_gallery_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYCD_SERVE__GALLERY", "ours.sqlite")
    monkeypatch.setenv("RAYCD_SERVE__PICTURES", "s3://ours")
    assert settings.addresses("", "") == ("ours.sqlite", "s3://ours")
    assert settings.addresses("ours.sqlite", "") == ("ours.sqlite", "s3://ours")
    assert settings.addresses("", "s3://other") == ("ours.sqlite", "s3://other")
    assert settings.addresses("./ours.sqlite", "") == ("./ours.sqlite", "s3://ours")
    assert settings.addresses("test.sqlite", "") == ("test.sqlite", "")
    monkeypatch.setenv("RAYCD_SERVE__GALLERY", "postgresql://ann:secret@host/db")
    assert settings.addresses("postgresql://host/db", "") == ("postgresql://host/db", "s3://ours")
    assert settings.addresses("postgresql://host/test", "") == ("postgresql://host/test", "")
    assert settings.addresses("sqlite:///test", "") == ("sqlite:///test", "")
    monkeypatch.delenv("RAYCD_SERVE__GALLERY")
    assert settings.addresses("test.sqlite", "") == ("test.sqlite", "s3://ours")


@pytest.mark.parametrize(
    ("named", "gallery"),
    [
        ("/data/g.sqlite", "sqlite:////data/g.sqlite"),
        ("sqlite:///g.sqlite?timeout=5", "g.sqlite"),
        ("sqlite:////data/g.sqlite", "sqlite+pysqlite:////data/../data/g.sqlite"),
        ("postgresql://ann:s/e#x@db/raycd", "postgresql://db:5432/raycd"),
        ("postgresql+psycopg://ann@corp:secret@db/raycd?sslmode=require", "postgresql://db/raycd"),
    ],
)
def test_a_gallery_that_is_spelled_otherwise_is_the_same_one(
    named: str, gallery: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYCD_SERVE__GALLERY", named)
    monkeypatch.setenv("RAYCD_SERVE__PICTURES", "s3://ours")
    assert settings.addresses(gallery, "") == (gallery, "s3://ours")
    assert capsys.readouterr().err == ""


def test_a_database_of_another_socket_is_another_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCD_SERVE__GALLERY", "postgresql:///raycd?host=/run/main&sslmode=disable")
    monkeypatch.setenv("RAYCD_SERVE__PICTURES", "s3://ours")
    same, other = (f"postgresql:///raycd?host=/run/{name}" for name in ("main", "other"))
    assert settings.addresses(same, "") == (same, "s3://ours")
    assert settings.addresses(other, "") == (other, "")
