"""serve/app.py as a command, and config.yaml."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc  # type: ignore[import-untyped]  # it has no stubs
import httpx
import psutil
import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from raycd.api import BundleInfo
from raycd.errors import ConfigError, RunError, TrackingError
from raycd.program import EXIT_TERMINATED
from serve import app
from serve.args import DEFAULT, ServeArgs, Wanted
from serve.start import running
from serve.start.local import check_room
from tests.hostile.sockets import open_to_others
from tests.serve.asking import ask, png, problem

ROOT = Path(__file__).parents[2]


def test_config_yaml_is_valid_and_stays_on_loopback() -> None:
    config = ServeDeploySchema.model_validate(
        yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    )
    assert config.http_options.host == "127.0.0.1"
    [application] = config.applications
    assert application.import_path == "serve.app:build"
    assert ServeArgs.model_validate(application.args).hosts == ("127.0.0.1", "localhost", "[::1]")


def test_a_bundle_of_the_registry_needs_a_gallery_that_is_named() -> None:
    with pytest.raises(ValidationError, match="set gallery") as caught:
        ServeArgs(bundle="models:/raycd@champion")
    assert [error["loc"] for error in caught.value.errors()] == [("gallery",)]
    for gallery in ("none", "/data/shop.sqlite", "postgresql://raycd@db/raycd"):
        assert ServeArgs(bundle="models:/raycd@champion", gallery=gallery).gallery == gallery
    with pytest.raises(ConfigError, match="set gallery"):
        app._read(["--bundle", "models:/raycd@champion"])
    options = app._read(["--bundle", "models:/raycd@champion", "--gallery", "none"])
    assert app._arguments(options.config, Path("/fetched")).bundle == "/fetched"


def test_what_replicas_are_given_says_the_same_in_other_folders_and_on_other_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--bundle", "s3://bucket/bundle", "--gallery", "sqlite:///runs/g.sqlite"]
    options = app._read(given)
    args = app._arguments(options.config, Path("/fetched"))
    assert (args.bundle, args.gallery) == ("/fetched", str(tmp_path / "runs/g.sqlite"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert app._arguments(options.config, Path("/fetched")).bundle == "s3://bucket/bundle"


def test_a_search_engine_needs_a_database_and_its_address_is_checked_at_the_start(
    tiny_bundle: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong, gallery, replicas in (
        ("gallery_engine needs the gallery's database: got gallery none", "none", 1),
        ("belongs to one process", "", 2),
    ):
        with pytest.raises(ValidationError, match=wrong):
            ServeArgs(gallery=gallery, gallery_engine="milvus:///data/x.db", replicas=replicas)
    bundle = ("--bundle", str(tiny_bundle.folder))
    assert app.main([*bundle, "--gallery-engine", "http://host:19530"]) == 2
    said = capsys.readouterr().err
    assert "the address of the search engine is malformed" in said
    assert "milvus://<host>:19530" in said
    assert app.main([*bundle, "--gallery-engine", "milvus://u:s3cret@host"]) == 2
    said = capsys.readouterr().err
    assert "RAYCD_SERVE__GALLERY_ENGINE" in said
    assert "s3cret" not in said


def test_settings_come_from_a_file_the_environment_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("top_k: 5\nmax_top_k: 50\nport: 8001\nhosts: [a.example]\n")
    monkeypatch.setenv("RAYCD_SERVE__MAX_TOP_K", "60")
    monkeypatch.setenv("RAYCD_SERVE__GALLERY", "postgresql://ann:s3cret@db/raycd")
    monkeypatch.setenv("RAYCD_SERVE__PORT", "8002")
    argv = ["--config", str(file), "--port", "8003", "--image-url", "--hosts", "b.example", "c"]
    read = app._read([*argv, "--formats", "PNG"]).config
    assert (read.top_k, read.max_top_k, read.port, read.image_url) == (5, 60, 8003, True)
    assert (read.hosts, read.formats) == (("b.example", "c"), ("PNG",))
    args = app._arguments(read, Path("/bundle"))
    assert (args.gallery, args.top_k) == ("postgresql://ann:s3cret@db/raycd", 5)
    with pytest.raises(ConfigError, match="set RAYCD_SERVE__GALLERY"):
        app._read(["--gallery", "postgresql://ann:s3cret@db/raycd"])
    monkeypatch.setenv("RAYCD_SERVE__TOPK", "5")
    with pytest.raises(ConfigError, match="did you mean RAYCD_SERVE__TOP_K"):
        app._read([])


def test_limits_that_contradict_one_another_or_take_all_memory_are_refused() -> None:
    for settings, wrong in (
        ({"top_k": 20, "max_top_k": 10}, "below top_k: got 10"),
        ({"candidates": 5001}, "candidates"),
    ):
        with pytest.raises(ValidationError, match=wrong):
            ServeArgs.model_validate(settings)
    with pytest.raises(ConfigError, match=r"candidates.*\n.*got: *5001"):
        app._read(["--candidates", "5001"])


@pytest.mark.parametrize("settings", [{"cuda_graphs": True}, {"index_on": "gpu"}])
def test_what_a_gpu_does_is_refused_without_one(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="set gpus, too"):
        ServeArgs.model_validate(settings)
    ServeArgs.model_validate(settings | {"gpus": 0.5})


def test_a_change_that_fails_is_one_message_and_the_service_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, ways = SimpleQueue[None](), []
    outcomes: list[Exception | dict[str, BundleInfo]] = [
        RuntimeError("Traceback:\n  deep\nthe application is unhealthy\n"),
        TrackingError("no answer", got="nothing"),
        {DEFAULT: BundleInfo(digest="good", created="")},
        {DEFAULT: BundleInfo(digest="good", created="", refused="it is damaged")},
    ]

    def change(args: ServeArgs, wanted: Wanted, back: Wanted) -> dict[str, BundleInfo]:
        ways.append((wanted.again, back.again))
        if not outcomes:
            raise KeyboardInterrupt
        asked.put(None)  # the next signal
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(running, "change", change)
    asked.put(None)
    asked.put(None)  # one, as the first is not taken yet
    with pytest.raises(KeyboardInterrupt):
        app._until_stopped(ServeArgs(bundle="/bundle"), ServeArgs(bundle="/bundle"), asked)
    said = capsys.readouterr()
    assert said.err.count("error: the bundle could not be changed, the service goes on") == 2
    assert "  got:      RuntimeError: the application is unhealthy\n" in said.err
    assert "  got:      no answer\n            got:      nothing\n" in said.err
    assert "Traceback" not in said.err
    assert said.out.splitlines() == [
        "raycd serves the bundle of digest good",
        "raycd serves the bundle of digest good; the new one was refused: it is damaged",
    ]
    assert ways == [(1, 0), (2, 0), (3, 0), (4, 3), (5, 3)]  # back to the last one that was taken


def command(*arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "serve" / "app.py"), *arguments],
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def message(*arguments: str) -> str:
    """Return what the command says about a mistake."""
    process = command(*arguments)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert out == ""
    assert "Traceback" not in error
    return error


def test_an_absent_bundle_is_told_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    error = message("--bundle", str(tmp_path / "nothing"))
    assert "no bundle" in error
    assert "run python jobs/train.py --preset demo first" in error
    assert time.monotonic() - began < 20


def test_a_port_in_use_is_told(tiny_bundle: Any) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in message(
            "--bundle", str(tiny_bundle.folder), "--port", str(port)
        )


def test_a_spoiled_bundle_and_impossible_options_are_told(
    tiny_bundle: Any, tmp_path: Path, free_port: int
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    port = str(free_port)
    assert "another format" in message("--bundle", str(tmp_path), "--port", "1" + port[1:])
    assert "less than or equal to 65535" in message("--port", "70000")
    assert "replicas: impossible value" in message(
        "--bundle", str(tiny_bundle.folder), "--replicas", "0"
    )


def test_more_replicas_than_the_machine_carries_are_refused() -> None:
    check_room(ServeArgs(replicas=2, gpus=0.5), {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(RunError, match="too few CPUs"):
        check_room(ServeArgs(replicas=3), {"CPU": 2.0})
    with pytest.raises(RunError, match="too few GPUs"):
        check_room(ServeArgs(gpus=1), {"CPU": 2.0})
    check_room(ServeArgs(replicas=3, gpus=0.6), {"CPU": 4.0, "GPU": 3.0})
    with pytest.raises(RunError, match=r"2 GPUs(.|\n)*3: 3 replicas of 0.6"):  # one on each card
        check_room(ServeArgs(replicas=3, gpus=0.6), {"CPU": 4.0, "GPU": 2.0})


def token_of(pid: int) -> str:
    """Return the token of the Ray that a process has started."""
    [path] = {
        path
        for child in psutil.Process(pid).children()
        if (path := child.environ().get("RAY_AUTH_TOKEN_PATH"))
    }
    return Path(path).read_text()


def refusal(port: int, token: str) -> grpc.StatusCode:
    """Return how a replica's port for other replicas refuses an empty request."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    with (
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(
            b"", timeout=30, metadata=metadata
        )
    return caught.value.code()


def check_sockets(pid: int, proxy: str) -> None:
    """Check that what the service leaves open to others is named in docs/serving.md, and runs
    nobody's code without the token.
    """
    found = open_to_others(pid)
    # Ray has no setting for these: HAProxy's statistics and metrics show figures, and replicas have
    # the token.
    proxies = ["haproxy", "haproxy"] if proxy == "haproxy" else []
    assert sorted(found.values()) == [*proxies, "ray::ServeReplica:raycd:search"]
    [replica] = [port for port, name in found.items() if name != "haproxy"]
    token = token_of(pid)
    assert (
        refusal(replica, "")
        == refusal(replica, "0" * len(token))
        == grpc.StatusCode.UNAUTHENTICATED
    )
    assert refusal(replica, token) not in (
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNAVAILABLE,
    )


@pytest.mark.parametrize(
    ("proxy", "host"),
    [("default", "[::1]"), pytest.param("haproxy", "127.0.0.1", marks=pytest.mark.slow)],
)
def test_the_command_serves_until_it_is_terminated(
    tiny_bundle: Any, free_port: int, proxy: str, host: str
) -> None:
    url, site = (
        f"http://{host}:{free_port}",
        ("--host", host.strip("[]"), "--port", str(free_port)),
    )
    process = command(
        "--bundle", str(tiny_bundle.folder), *site, "--proxy", proxy, "--batch-wait-s", "2"
    )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        assert url in ready, process.stderr and process.stderr.read()
        assert "/v1/search" in process.stdout.readline()
        with httpx.Client(base_url=url, timeout=60) as client:
            assert ask(client, png(tiny_bundle.images[0]), text="is blue").status_code == 200
            assert client.get("/v1/gallery", headers={"Host": "localhost"}).status_code == 200
            problem(client.get("/v1/gallery", headers={"Host": "evil.example"}), 421)
            if proxy == "default":
                assert client.get("/-/routes", headers={"Host": "evil.example"}).status_code == 421
            check_sockets(process.pid, proxy)
            with ThreadPoolExecutor(4) as threads:  # what is under way is finished
                asked = [
                    threads.submit(ask, client, text=f"is number {number}") for number in range(4)
                ]
                time.sleep(1)
                process.send_signal(signal.SIGTERM)
                assert [one.result().status_code for one in asked] == [200] * 4
        _, error = process.communicate(timeout=60)
        assert process.returncode == 143, error
        assert "Traceback" not in error
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "option", [["--proxy", "haproxy"], ["--metrics-port", "9000"], ["--traces"]], ids=str
)
def test_what_a_cluster_reads_before_it_starts_is_no_option_there(
    option: list[str], tiny_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    options = app._read(["--bundle", str(tiny_bundle.folder), *option])
    with pytest.raises(ConfigError, match=rf"would change nothing\n.*got: +{option[0]}"):
        app._serve(options)


@pytest.mark.parametrize("host", ["no-such-name.invalid", "a..b"])
@pytest.mark.parametrize("ray", ["local", "127.0.0.1:6379"])
def test_a_host_without_an_address_is_told(
    host: str, ray: str, tiny_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    options = app._read(["--bundle", str(tiny_bundle.folder), "--host", host])
    with pytest.raises(RunError, match=f"no address of the host {host}"):
        app._serve(options)


def test_names_are_as_browsers_send_them_and_those_that_match_nothing_are_refused() -> None:
    for wrong in ("https://*.example.org", "https://müller.example"):
        with pytest.raises(ValueError, match="matches nothing"):
            ServeArgs(cors_origins=(wrong,))
    for wrong in ("*.example.org", "müller.example"):
        with pytest.raises(ValueError, match="matches nothing"):
            ServeArgs(hosts=(wrong,))
    with pytest.raises(ValueError, match="is not an origin"):
        ServeArgs(cors_origins=("https://a.example:x",))
    own = ("http://[0:0:0:0:0:0:0:1]:8000", "https://a.example:0443")
    assert ServeArgs(cors_origins=own).cors_origins == ("http://[::1]:8000", "https://a.example")
    ports = ("https://a.example:443", "http://b.example:80", "https://c.example:1443")
    assert ServeArgs(cors_origins=ports).cors_origins == (
        "https://a.example",
        "http://b.example",
        "https://c.example:1443",
    )
    assert ServeArgs(hosts=("0:0:0:0:0:0:0:1", "[::1]")).hosts == ("[::1]", "[::1]")
    with pytest.raises(ValueError, match="1:2"):
        ServeArgs(hosts=("1:2",))


def test_the_unit_for_systemd_starts_what_there_is_and_knows_how_it_ends() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]  # names are not lowered
    unit.read_string(docs[docs.index("[Unit]") :].partition("```")[0])
    _, program_, *options = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(__file__).parents[2] / program_).is_file()
    assert app._read(options).config.gallery == "/srv/raycd/gallery.sqlite"
    assert int(unit["Service"]["SuccessExitStatus"]) == EXIT_TERMINATED
