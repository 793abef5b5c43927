"""`python -m raycd.client put`, `delete` and `import`, and `--min-version` of reading commands."""

import json
import os
import pty
import signal
import subprocess
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from raycd.client.__main__ import main
from tests.client.scripted import (
    LINES,
    Reply,
    Service,
    done,
    failed,
    found,
    info,
    item,
    refusal,
    settled,
    takes_all,
    written,
)
from tests.client.test_command import start, wait_until_it_sleeps

Run = Callable[..., int]


@pytest.fixture
def run(service: Service) -> Run:
    def command(*argv: str) -> int:
        return main(argv, {"RAYCD_URL": service.url})

    return command


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "x.jpg"
    path.write_bytes(b"pixels")
    return path


def lines_of(tmp_path: Path, *names: str) -> str:
    """Return a file of JSON Lines that all name the picture."""
    path = tmp_path / "in.jsonl"
    path.write_text(
        "".join(json.dumps({"image_id": name, "image": "x.jpg"}) + "\n" for name in names)
    )
    return str(path)


def test_put_says_whether_the_image_is_new(
    run: Run, service: Service, picture: Path, capsys: Any
) -> None:
    service.answers(Reply(201, written("DV1", 7)), Reply(200, written("DV1", 1008, created=False)))
    line = (
        f"put DV1 --image {picture} --category dress --category shirt "
        "--attribute colour:blue --attribute time:10:30"
    )
    assert run(*line.split()) == 0
    assert run("put", "DV1", "--image", str(picture), "--json") == 0
    body = service.asked[0].body
    assert b"dress" in body
    assert b"shirt" in body
    assert json.dumps({"colour": "blue", "time": "10:30"}).encode() in body
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first == "added DV1, version 7"
    assert json.loads(rest) == written("DV1", 1008, created=False)


def test_an_image_has_one_value_of_an_attribute(
    run: Run, service: Service, picture: Path, capsys: Any
) -> None:
    assert (
        run(
            "put",
            "a",
            "--image",
            str(picture),
            "--attribute",
            "colour:blue",
            "--attribute",
            "colour:red",
        )
        == 2
    )
    assert "2 values of an attribute" in capsys.readouterr().err
    assert service.asked == []


def test_delete_goes_on_after_an_image_that_is_not_there(
    run: Run, service: Service, capsys: Any
) -> None:
    gone = Reply(200, written("b", 9, created=False))
    service.answers(refusal(404, "the gallery has no image 'a'"), gone)
    assert run("delete", "a", "b") == 2
    out, error = capsys.readouterr()
    assert out == "deleted b, version 9\n"
    assert "the gallery has no image 'a'" in error
    service.answers(refusal(404), gone)
    assert run("delete", "a", "b", "--missing-ok") == 0
    assert capsys.readouterr() == ("deleted b, version 9\n", "the gallery has no image 'a'\n")


def test_delete_stops_where_the_service_refuses(run: Run, service: Service, capsys: Any) -> None:
    service.answers(refusal(403, "a read key cannot write"))
    assert run("delete", "a", "b") == 2
    assert "a read key cannot write" in capsys.readouterr().err


def test_what_reads_waits_for_a_version(run: Run, service: Service, tmp_path: Path) -> None:
    page = {"items": [item("a")], "total": 1, "offset": 0}
    service.answers(Reply(body=found("a")), Reply(body=page), Reply(body=b"x"))
    assert run("search", "--text", "x", "--min-version", "7") == 0
    assert run("gallery", "--min-version", "7") == 0
    assert run("image", "a", "--out", str(tmp_path / "out"), "--min-version", "7") == 0
    assert all("min_version=7" in asked.path for asked in service.asked)
    assert service.asked[0].json() == {"text": "x"}


def test_an_import_tells_how_many_images_are_in_the_gallery(
    run: Run, service: Service, tmp_path: Path, picture: Path, capsys: Any
) -> None:
    service.answers(Reply(body=info()), settled(done(1, 1008), done(2, 1007)))
    assert run("import", lines_of(tmp_path, "a", "b")) == 0
    assert capsys.readouterr() == ("2 of 2 images are in the gallery, version 1,008\n", "")
    service.answers(Reply(body=info()), takes_all)
    assert run("import", lines_of(tmp_path, "a"), "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"images": 1, "imported": 1, "version": 1}


def test_a_report_does_not_replace_the_images_that_it_is_of(
    run: Run, service: Service, tmp_path: Path, picture: Path, capsys: Any
) -> None:
    file = lines_of(tmp_path, "a")
    before = Path(file).read_text()
    assert run("import", file, "--report", file) == 2
    assert "the report would replace the images" in capsys.readouterr().err
    assert (Path(file).read_text(), service.asked) == (before, [])


def test_failures_of_an_import_are_told_and_reported_with_exit_code_2(
    run: Run, service: Service, tmp_path: Path, picture: Path, capsys: Any
) -> None:
    file = lines_of(tmp_path, "a", "b\x1b[2J")
    Path(file).write_text(
        Path(file).read_text() + 'no json\n\n{"image_id": "c", "image": "nowhere.jpg"}\n'
    )
    service.answers(Reply(body=info()), settled(done(1, 7), failed(2, 422, "it is \x1b[2J broken")))
    assert run("import", file, "--report", str(tmp_path / "report.jsonl")) == 2
    out, error = capsys.readouterr()
    assert out == "1 of 4 images are in the gallery, version 7\n"
    second, third, fifth = error.splitlines()
    assert second == "'b\\x1b[2J' (line 2): it is  [2J broken"
    assert third.startswith("line 3: it is not JSON: ")
    assert fifth.startswith("'c' (line 5): cannot read the image 'nowhere.jpg'")
    report = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [(each["line"], each["status"]) for each in report] == [
        (1, 201),
        (2, 422),
        (3, 422),
        (5, 422),
    ]
    assert report[0] == {"line": 1, "image_id": "a", "status": 201, "version": 7}


def test_an_import_reads_standard_input(service: Service, picture: Path) -> None:
    service.answers(Reply(body=info()), takes_all)
    with start(
        "import",
        "-",
        "--url",
        service.url,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=picture.parent,
    ) as process:
        out, error = process.communicate(b'{"image_id": "a", "image": "x.jpg"}\n', timeout=30)
    assert (out, error) == (b"1 of 1 images are in the gallery, version 1\n", b"")


CSV = """image_id,path,category,split,colour,price
007,x.jpg,dress,train,blue,10
007,x.jpg,shirt,train,blue,10
007,x.jpg,shirt,val,blue,10
b,x.jpg,,val,,
"""


def test_a_gallery_table_of_a_training_is_imported_as_it_is(
    run: Run, service: Service, tmp_path: Path, picture: Path, capsys: Any
) -> None:
    (tmp_path / "gallery.csv").write_text(CSV)
    service.answers(Reply(body=info()), takes_all)
    assert run("import", str(tmp_path / "gallery.csv")) == 0
    first, second = service.asked[1].lines()
    assert first == {
        "image_id": "007",
        "image_base64": "cGl4ZWxz",
        "category": ["dress", "shirt"],
        "attributes": {"colour": "blue", "price": "10"},
    }
    assert second == {"image_id": "b", "image_base64": "cGl4ZWxz", "category": [], "attributes": {}}


def test_a_table_whose_paths_start_elsewhere_is_imported_from_its_root(
    run: Run, service: Service, tmp_path: Path, picture: Path, capsys: Any
) -> None:
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "gallery.csv"
    table.write_text(CSV)
    service.answers(Reply(body=info()))
    assert run("import", str(table)) == 2
    out, error = capsys.readouterr()
    assert out == "0 of 2 images are in the gallery\n"
    assert (
        f"in {tmp_path}/tables; where paths start from another folder, name it by --root" in error
    )
    service.answers(Reply(body=info()), takes_all)
    assert run("import", str(table), "--root", str(tmp_path)) == 0
    assert "2 of 2 images are in the gallery" in capsys.readouterr().out


def test_a_line_of_json_starts_from_the_root_too(
    run: Run, service: Service, tmp_path: Path, picture: Path
) -> None:
    (tmp_path / "lines").mkdir()
    file = tmp_path / "lines" / "images.jsonl"
    file.write_text('{"image_id": "a", "image": "x.jpg"}\n')
    service.answers(Reply(body=info()), takes_all)
    assert run("import", str(file), "--root", str(tmp_path)) == 0


def test_parquet_may_have_its_attributes_in_one_column(
    run: Run, service: Service, tmp_path: Path, picture: Path
) -> None:
    rows = {
        "image_id": [1, 2],
        "path": ["x.jpg", str(picture)],
        "attributes": ['{"size": 7}', None],
    }
    pyarrow.parquet.write_table(pa.table(rows), tmp_path / "g.parquet")
    service.answers(Reply(body=info()), takes_all)
    assert run("import", str(tmp_path / "g.parquet")) == 0
    sent_lines = [(line["image_id"], line["attributes"]) for line in service.asked[1].lines()]
    assert sent_lines == [("1", {"size": "7"}), ("2", {})]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image_id,image\na,x.jpg\n", "expected: also path"),
        ("image_id,path\na,x.jpg\n,x.jpg\n", "gallery.csv, row 2 is incomplete"),
        ("image_id,path\na,x.jpg\na,y.jpg\n", "gallery.csv, row 2 describes an image differently"),
        (
            "image_id,path,attributes\na,x.jpg,blue\n",
            "gallery.csv, row 1, attributes has the wrong shape",
        ),
        ("image_id,path,colour,colour\na,x.jpg,x,y\n", "gallery.csv has 2 columns 'colour'"),
        ('image_id,path,attributes\na,x.jpg,"{""x"": ""\\ud83d""}"\n', "half a character"),
        ("", "gallery.csv cannot be read as csv"),
    ],
)
def test_a_malformed_table_is_told_before_anything_is_sent(
    run: Run, service: Service, tmp_path: Path, table: str, message: str, capsys: Any
) -> None:
    (tmp_path / "gallery.csv").write_text(table)
    assert run("import", str(tmp_path / "gallery.csv")) == 2
    assert message in capsys.readouterr().err
    assert service.asked == []


def test_what_was_imported_before_the_service_went_is_told(
    run: Run, service: Service, tmp_path: Path, picture: Path, capsys: Any
) -> None:
    service.answers(
        Reply(body=info()), settled(done(1, 7), cut=b""), refusal(403, "a read key cannot write")
    )
    report = tmp_path / "report.jsonl"
    assert run("import", lines_of(tmp_path, "a", "b"), "--report", str(report)) == 2
    out, error = capsys.readouterr()
    assert out == ""
    stopped, mistake, *_ = error.splitlines()
    assert (
        stopped == "stopped: 1 of 1 images are in the gallery, version 7; "
        "others may be: import the same again"
    )
    assert mistake.startswith("error: ")
    assert json.loads(report.read_text())["version"] == 7


def test_ctrl_c_tells_what_was_imported(service: Service, tmp_path: Path, picture: Path) -> None:
    report, leave = tmp_path / "report.jsonl", threading.Event()

    def parts() -> Iterator[bytes]:
        yield json.dumps(failed(1, 422)).encode() + b"\n" + json.dumps(done(2, 7)).encode() + b"\n"
        leave.wait(30)

    service.answers(Reply(body=info()), Reply(200, parts(), LINES))
    file = lines_of(tmp_path, "a", "b", "c")
    with start("import", file, "--report", str(report), "--url", service.url) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"'a' (line 1): no\n"
        wait_until_it_sleeps(process.pid)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
        leave.set()
    assert process.returncode == 130
    assert error.decode().splitlines() == [
        "stopped: 1 of 2 images are in the gallery, version 7; "
        "others may be: import the same again",
        "interrupted",
    ]
    assert [json.loads(line)["status"] for line in report.read_text().splitlines()] == [422, 201]


def some_of(terminal: int) -> str:
    """Return what has been written and not been read; nothing at its end."""
    try:
        return os.read(terminal, 100_000).decode()
    except OSError:  # EIO: nobody has it open any more
        return ""


def test_a_terminal_shows_progress_and_failures_beside_it(
    service: Service, tmp_path: Path, picture: Path
) -> None:
    service.answers(Reply(body=info()), settled(failed(1, 422, "it is broken"), done(2)))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    command = ["import", lines_of(tmp_path, "a", "b"), "--url", service.url]
    with start(*command, stderr=theirs, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate(timeout=30)
    os.close(theirs)
    shown = "".join(iter(lambda: some_of(ours), ""))
    os.close(ours)
    assert out == b"1 of 2 images are in the gallery, version 1\n"
    assert "'a' (line 1): it is broken\r\n" in shown
    assert "import: 2 images" in shown


@pytest.mark.parametrize(
    "argv", [["put", "a"], ["delete"], ["import"], ["gallery", "--min-version", "-1"]]
)
def test_an_impossible_command_line_is_told(run: Run, argv: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    assert stop.value.code == 2


def test_a_file_that_is_not_there_leaves_the_report_of_before(
    run: Run, tmp_path: Path, capsys: Any
) -> None:
    report = tmp_path / "report.jsonl"
    report.write_text("before")
    assert run("import", "/nowhere.jsonl", "--report", str(report)) == 2
    assert run("import", "/nowhere.csv", "--report", str(report)) == 2
    assert report.read_text() == "before"
    assert "cannot read or write /nowhere.jsonl" in capsys.readouterr().err
