"""`python -m raycd.client`: its output and its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from raycd.client.__main__ import main
from tests.client.scripted import Reply, Service, found, info, item, problem, refusal

Run = Callable[..., int]


@pytest.fixture
def run(service: Service) -> Run:
    def command(*argv: str, **environment: str) -> int:
        return main(argv, {"RAYCD_URL": service.url, **environment})

    return command


def test_a_search_is_shown_as_a_table(
    run: Run, service: Service, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    image = tmp_path / "x.jpg"
    image.write_bytes(b"pixels")
    service.answers(Reply(body=found("DV1", "a-long-name", warnings=("the text was cut",))))
    assert run("search", "--image", str(image), "--text", "is blue") == 0
    out, error = capsys.readouterr()
    assert out.splitlines() == [
        "rank  image_id      score  relative  category  attributes",
        "   1  DV1          0.7500     +2.50  dress     colour:blue",
        "   2  a-long-name  0.7500     +2.50  dress     colour:blue",
        "1 to 2 of 3 images",
    ]
    assert error == "warning: the text was cut\n"
    assert b"pixels" in service.asked[0].body


def test_every_option_of_a_search_is_its_field(run: Run, service: Service, capsys: Any) -> None:
    service.answers(Reply(body=found("a")))
    line = (
        "search --image-id DV1 --text x --negative-text y --image-weight 0.5 --text-weight 2 "
        "--top-k 3 --offset 6 --category dress --category shirt "
        "--attribute colour:blue --attribute colour:red --attribute time:10:30 "
        "--exclude-reference --exact --boost price:-0.5 --near-duplicates hide "
        "--group-by brand --diversity 0.25"
    )
    assert run(*line.split()) == 0
    assert service.asked[0].json() == {
        "image_id": "DV1",
        "text": "x",
        "negative_text": "y",
        "image_weight": 0.5,
        "text_weight": 2.0,
        "top_k": 3,
        "offset": 6,
        "category": ["dress", "shirt"],
        "attributes": {"colour": ["blue", "red"], "time": ["10:30"]},
        "exclude_reference": True,
        "exact": True,
        "boost": {"attribute": "price", "weight": -0.5},
        "near_duplicates": "hide",
        "group_by": "brand",
        "diversity": 0.25,
    }
    assert "   7  a " in capsys.readouterr().out


def test_who_asks_is_named(run: Run, service: Service, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "is blue"}')
    batch = {"items": [{"status": 200, "response": found("a")}]}
    service.answers(Reply(body=found("a")), Reply(body=info()), Reply(body=batch))
    assert run("search", "--text", "is blue", "--user", "ann") == 0
    assert run("batch", str(tmp_path / "in.jsonl"), "--user", "ann") == 0
    named = [asked.headers.get("raycd-user") for asked in service.asked]
    assert named == ["ann", None, "ann"]


def test_conditions_of_attributes_are_sent_as_such(run: Run, service: Service) -> None:
    service.answers(Reply(body=found("a")))
    where = ["price >= 10", "price<50.5", "brand!=none", "brand!=x=y", "colour!=red"]
    options = [part for one in where for part in ("--where", one)]
    assert run("search", "--text", "x", "--attribute", "colour:blue", *options) == 0
    assert service.asked[0].json()["attributes"] == {
        "price": {"gte": 10.0, "lt": 50.5},
        "brand": {"not": ["none", "x=y"]},
        "colour": {"in": ["blue"], "not": ["red"]},
    }


def test_a_page_of_the_gallery_is_filtered_as_a_search(run: Run, service: Service) -> None:
    service.answers(Reply(body={"items": [], "total": 0, "offset": 0}))
    options = ["--attribute", "neck:v", "--where", "price>=10", "--where", "brand!=none"]
    assert run("gallery", *options) == 0
    asked = httpx.URL(service.asked[0].path).params
    assert asked["attribute"] == "neck:v"
    assert json.loads(asked["attributes"]) == {"price": {"gte": "10"}, "brand": {"not": ["none"]}}


@pytest.mark.parametrize("where", ["price", "price >", "> 3", "price:3"])
def test_a_condition_of_no_sign_is_refused(run: Run, where: str, capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("search", "--text", "x", "--where", where)
    assert "expected a name, one of < <= > >= !=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "said"),
    [(["price > much"], "valid number"), (["price > 3", "price > 4"], "given twice")],
)
def test_a_condition_that_cannot_be_is_refused(
    run: Run, service: Service, capsys: Any, where: list[str], said: str
) -> None:
    options = [part for one in where for part in ("--where", one)]
    assert run("search", "--text", "x", *options) == 2
    assert said in capsys.readouterr().err
    assert service.asked == []


def test_json_is_the_services_answer(
    run: Run, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv in (["--json", "search", "--text", "x"], ["search", "--text", "x", "--json"]):
        service.answers(Reply(body=found("a")))
        assert run(*argv) == 0
        assert json.loads(capsys.readouterr().out) == found("a")


def test_no_results_are_told(
    run: Run, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers(Reply(body=found()))
    assert run("search", "--text", "x") == 0
    assert "none of 3 images" in capsys.readouterr().out


def test_what_the_service_says_cannot_steer_the_terminal(
    run: Run, service: Service, capsys: Any
) -> None:
    service.answers(Reply(body=found("a\x1b[2Jb\n", warnings=("c\x1b[2Jd",))))
    assert run("search", "--text", "x") == 0
    out, error = capsys.readouterr()
    assert "\x1b" not in out + error


def test_the_gallery_and_the_service_are_shown(run: Run, service: Service, capsys: Any) -> None:
    service.answers(Reply(body={"items": [item("a")], "total": 3, "offset": 1}))
    assert (
        run(
            "gallery",
            "--offset",
            "1",
            "--limit",
            "1",
            "--category",
            "dress",
            "--attribute",
            "colour:blue",
        )
        == 0
    )
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "image_id  category  attributes",
        "a         dress     colour:blue",
        "2 to 2 of 3 images",
    ]
    assert (
        service.asked[0].path
        == "/v1/gallery?offset=1&limit=1&category=dress&attribute=colour%3Ablue"
    )
    service.answers(Reply(body=info()), Reply(body={"status": "ready", "replicas": 2}))
    assert run("info") == run("ready") == 0
    out = capsys.readouterr().out
    assert "index       flat, 3 images, version 1, recall 1.000" in out
    assert "colour      blue 3" in out
    assert out.endswith("ready (2 replicas)\n")


def test_a_picture_is_written_as_it_is(
    run: Run, service: Service, tmp_path: Path, capfdbinary: Any
) -> None:
    service.answers(*[Reply(body=b"\xff\xd8\x00", kind="image/jpeg")] * 3)
    assert run("image", "DV1", "--out", str(tmp_path / "x.jpg")) == 0
    assert (tmp_path / "x.jpg").read_bytes() == b"\xff\xd8\x00"
    assert run("image", "DV1", "--size", "original", "--out", str(tmp_path / "no" / "x.jpg")) == 2
    assert b"cannot read or write" in capfdbinary.readouterr().err
    assert run("image", "DV1", "--out", "-") == 0
    assert capfdbinary.readouterr().out == b"\xff\xd8\x00"


def test_a_bad_line_stops_no_other(run: Run, service: Service, tmp_path: Path, capsys: Any) -> None:
    lines = [
        '{"text": "1"}',
        "no json",
        "",
        "[1]",
        '{"image": "/nowhere"}',
        '{"texxt": "x"}',
        "\udcff",
        '{"text": "2"}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), errors="surrogateescape")
    items = [
        {"status": 200, "response": found("a")},
        {"status": 422, "problem": problem(422, "no")},
    ]
    service.answers(Reply(body=info()), Reply(body={"items": items}))
    assert run("batch", str(tmp_path / "in.jsonl")) == 2
    out, error = capsys.readouterr()
    printed = [json.loads(line) for line in out.splitlines()]
    assert [(each["line"], each["status"]) for each in printed] == [
        (1, 200),
        (2, 400),
        (4, 400),
        (5, 400),
        (6, 400),
        (7, 400),
        (8, 422),
    ]
    assert printed[0]["response"] == found("a")
    assert "line 5: cannot read the image" in printed[3]["problem"]["detail"]
    assert "texxt" in printed[4]["problem"]["detail"]
    assert error == "6 of 7 searches failed: see their problems\n"


def test_a_file_of_any_length_goes_in_batches_that_the_service_takes(
    run: Run, service: Service, tmp_path: Path, capsys: Any
) -> None:
    texts = ["a", "b", "c", "d" * 150, "e" * 150]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    batches = [["a", "b"], ["c", "d" * 150], ["e" * 150]]
    service.answers(Reply(body=info(batch=2, body_bytes=300)))
    for batch in batches:
        service.answers(
            Reply(body={"items": [{"status": 200, "response": found(text[0])} for text in batch]})
        )
    assert run("batch", str(tmp_path / "in.jsonl")) == 0
    asked = service.asked[1:]
    assert [[search["text"] for search in each.json()["searches"]] for each in asked] == batches
    assert all(len(each.body) <= 300 for each in asked)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["response"]["results"][0]["image_id"] for each in printed] == [
        "a",
        "b",
        "c",
        "d",
        "e",
    ]


def test_a_line_larger_than_the_service_takes_fails_alone(
    run: Run, service: Service, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "' + "x" * 300 + '"}\n{"text": "b"}\n')
    service.answers(
        Reply(body=info(body_bytes=200)),
        refusal(413, "larger than 200 bytes"),
        Reply(body={"items": [{"status": 200, "response": found("b")}]}),
    )
    assert run("batch", str(tmp_path / "in.jsonl")) == 2
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["status"] for each in printed] == [413, 200]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["search", "--text", "x", "--top-k", "0"], "top_k: "),
        (["search", "--image", "/nowhere.jpg"], "cannot read the image"),
        (["batch", "/nowhere.jsonl"], "cannot read or write /nowhere.jsonl"),
        (["info", "--url", "localhost"], "the url of the service is impossible"),
    ],
)
def test_a_mistake_is_told_with_exit_code_2(
    run: Run, argv: list[str], message: str, capsys: Any
) -> None:
    assert run(*argv) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["find"],
        ["search", "--image", "a", "--image-id", "b"],
        ["search", "--attribute", "blue"],
        ["info", "--timeout", "nan"],
        ["info", "--retries", "-1"],
        ["info", "--api-key", "s3cret"],
    ],
)
def test_an_impossible_command_line_is_told_with_exit_code_2(
    run: Run, argv: list[str], capsys: Any
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*argv)
    assert stop.value.code == 2
    assert "usage: python -m raycd.client" in capsys.readouterr().err


def test_the_key_comes_from_the_environment(run: Run, service: Service, capsys: Any) -> None:
    service.answers(refusal(401, "the key is wrong"))
    assert run("info", RAYCD_API_KEY="s3cret") == 2
    assert service.asked[0].headers["authorization"] == "Bearer s3cret"
    assert "s3cret" not in capsys.readouterr().err


def test_a_service_that_is_not_ready_is_exit_code_2(
    run: Run, service: Service, capsys: Any
) -> None:
    service.answers(refusal(503, "0 of 1 replicas answer", after="1"))
    assert run("ready") == 2
    assert "0 of 1 replicas answer" in capsys.readouterr().err


def start(*argv: str, **pipes: Any) -> subprocess.Popen[bytes]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAYCD_URL", "RAYCD_API_KEY")
    }
    return subprocess.Popen(
        [sys.executable, "-m", "raycd.client", *argv],
        env=environment,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background jobs ignore it
        **{"stderr": subprocess.PIPE, **pipes},
    )


def wait_until_it_sleeps(pid: int) -> None:
    """Wait until the process waits: Python sees a signal that comes just before only afterwards."""
    asleep = 0
    while asleep < 5:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_without_a_traceback(number: int, code: int) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(30)
        with start("info", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}") as process:
            connection, _ = silent.accept()
            with connection:
                connection.recv(1)
                wait_until_it_sleeps(process.pid)
                process.send_signal(number)
                _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert error in (b"interrupted\n", b"terminated\n")


def test_a_reader_that_leaves_ends_it_without_a_traceback(service: Service) -> None:
    service.answers(Reply(body=info()))
    read, write = os.pipe()
    os.close(read)
    with start("info", "--url", service.url, stdout=write) as process:
        os.close(write)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (141, b"")
