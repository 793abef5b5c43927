"""The benchmark of the service: its arithmetic, its load on a real server, and its floor."""

import io
import itertools
import json
import math
import shutil
import threading
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from jobs.benchmarks import serve
from jobs.benchmarks.serve import CELLS, Measurement, compare, select
from jobs.benchmarks.serving import bundles, figures, floor
from jobs.benchmarks.serving.load import LoadResult, Sample, Site
from raycd import bundle
from raycd.errors import ConfigError, RunError
from raycd.search.query import Query
from raycd.search.searcher import Searcher
from tests import refused


def answered(*ms: float, every: float = 0.1, timing: str = "") -> list[Sample]:
    return [Sample(number * every, one, 200, timing) for number, one in enumerate(ms)]


NEEDS_WRK = pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed")


def test_quantile_is_the_nearest_rank() -> None:
    hundred = [float(value) for value in range(1, 101)]
    assert [figures.quantile(hundred, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert figures.quantile([7.0], 0.99) == 7
    assert math.isnan(figures.quantile([], 0.5))


def test_speed_counts_what_was_answered_in_its_window() -> None:
    samples = [
        Sample(0.0, 500, 200, ""),  # before the window
        Sample(0.9, 200, 200, ""),  # asked before it, answered in it
        Sample(1.5, 100, 200, ""),
        Sample(1.6, 5, 503, ""),
        Sample(2.9, 200, 200, ""),  # answered after it
    ]
    assert figures.speed(LoadResult(samples, errors=2), 1.0, 3.0) == {
        "successes/s": 1.0,
        "p50, ms": 100,
        "p99, ms": 200,
        "failures": 3,
    }


def test_server_timing_tells_steps_and_batch() -> None:
    header = (
        'read;dur=0.5, decode;dur=1.25, search;desc="flat";dur=2, batch;desc="8", cache;desc=hit'
    )
    assert figures.timings(header) == {"read": 0.5, "decode": 1.25, "search": 2.0, "batch": 8.0}


def test_breakdown_adds_up_to_what_the_client_saw() -> None:
    timing = "read;dur=1, decode;dur=2, wait;dur=3, encode;dur=4, search;dur=5, total;dur=16"
    rows = figures.breakdown(answered(20, 22, timing=timing))
    assert (rows["mean rest of the service, ms"], rows["mean outside of the service, ms"]) == (1, 5)
    assert sum(float(value) for value in rows.values()) == pytest.approx(21)
    assert figures.breakdown(answered(20, 22)) == {}


def test_a_batch_counts_once_however_many_queries_tell_of_it() -> None:
    rows = figures.batches([8.0] * 8 + [1.0, 1.0])
    assert rows == {
        "mean batch": pytest.approx(10 / 3),
        "batch of the median query": 8,
        "largest batch": 8,
    }


def test_refusals_and_failures_are_told_apart() -> None:
    samples = [
        Sample(0, 30, 200, ""),
        Sample(0, 5, 503, ""),
        Sample(0, 150, 429, ""),
        Sample(0, 9, 500, ""),
    ]
    rows = figures.refusals(LoadResult(samples, errors=2), asked=7)
    assert (rows["asked"], rows["answered"], rows["refused"]) == (7, 1, 2)
    assert rows["refusals within 100 ms, %"] == 50
    assert rows["other failures"] == "1 x 500, 2 x connection, 3 x unanswered"


def test_a_service_has_recovered_when_its_answers_are_as_quick_as_before() -> None:
    slow, quick = [90.0] * 20, [10.0] * 20
    assert figures.recovery(answered(*slow, *quick), 10) == pytest.approx(
        1.5
    )  # 6 of 11 answers are quick
    assert figures.recovery(answered(*quick), 10) == 0
    assert figures.recovery(answered(*slow), 10) == math.inf
    refused = [one._replace(status=503) for one in answered(*quick)]
    assert figures.recovery(refused, 10) == math.inf


def test_the_service_is_compared_with_the_better_floor() -> None:
    def cells(server: str, p50: float, rate: float) -> dict[Measurement, figures.Figures]:
        return {
            Measurement("demo", server, n): {
                "p50, ms": p50,
                "p99, ms": 2 * p50,
                "successes/s": rate,
            }
            for n in ("1", "32")
        }

    found = (
        cells("floor-1-thread", 5, 100) | cells("floor-2-threads", 4, 80) | cells("haproxy", 7, 300)
    )
    assert compare(found) == {
        "demo, haproxy: p50 of one client beyond the floor's, ms (at most 4)": 3,
        "demo, haproxy: successes/s of 32 clients : the floor's (at least 2.5)": 3,
        "demo, haproxy: p99 : p50 of 32 clients (at most 3)": 2,
    }


def test_parts_are_chosen_by_pattern() -> None:
    assert select("") == list(CELLS)
    assert select("*/haproxy/32, demo/floor-1*") == [
        Measurement("demo", "floor-1-thread", "1"),
        Measurement("demo", "floor-1-thread", "32"),
        Measurement("demo", "haproxy", "32"),
        Measurement("vit", "haproxy", "32"),
    ]
    with pytest.raises(ConfigError, match="names nothing"):
        select("demo/nginx/*")


class Listener(ThreadingHTTPServer):
    """Remembers what it was asked; says no to every text that ends with 3."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Listener

    def do_POST(self) -> None:
        asked = self._asked(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self.send_response(503 if asked["text"].endswith("3") else 200)
        self.send_header("Server-Timing", 'total;dur=1.5, batch;desc="2"')
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def _asked(self, body: bytes) -> dict[str, Any]:
        kind = self.headers["Content-Type"]
        if kind == "application/json":
            asked: dict[str, Any] = json.loads(body)
            return asked
        form = BytesParser(policy=HTTP).parsebytes(
            b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body
        )
        parts = {
            str(part.get_param("name", header="content-disposition")): part
            for part in form.iter_parts()
        }
        image = parts.pop("image").get_payload(decode=True)
        return {"image": image} | {name: part.get_content() for name, part in parts.items()}

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the requests of all kinds."""
    folder = tmp_path_factory.mktemp("benchmark") / "requests"
    bundles.write_requests(folder, bundles.image_ids(1000), 64)
    return folder


@pytest.mark.slow
@NEEDS_WRK
def test_clients_ask_with_pictures_and_new_texts_until_the_time_is_over(
    listener: Listener, requests: Path
) -> None:
    site = Site(listener.server_port, requests, 1.0)
    seen, again = site.send(1.5, clients=3), site.send(1.5, clients=3)
    samples, texts = [*seen.samples, *again.samples], [asked["text"] for asked in listener.asked]
    assert len(samples) == len(texts) == len(set(texts)) > 10
    assert {text.rpartition(" ")[2] for text in texts} >= {"000000001", "000000002", "001000003"}
    assert {(one.status, one.timing) for one in samples} == {
        (s, 'total;dur=1.5, batch;desc="2"') for s in (200, 503)
    }
    assert sum(one.status == 503 for one in samples) == sum(text.endswith("3") for text in texts)
    # Timers of wrk have 1 ms; what was to be sent just before the end may be late here.
    assert all(-0.01 < one.due < 1.7 and one.ms > 0 for one in samples)
    assert {Image.open(io.BytesIO(asked["image"])).size for asked in listener.asked} == {(64, 64)}
    assert (seen.errors, seen.client_ms > 0) == (0, True)


@pytest.mark.slow
@NEEDS_WRK
def test_a_rate_is_kept_and_another_load_can_run_beside_it(
    listener: Listener, requests: Path
) -> None:
    site = Site(listener.server_port, requests, 1.0)
    with site.sending(0.5, rate=100, kind="image_id, new text", patience=3) as first:
        second = site.send(1.5, clients=1, kind="image_id, new text")
    assert sorted(one.due for one in first.samples) == pytest.approx([n / 100 for n in range(50)])
    assert second.samples
    assert all(
        asked["image_id"].startswith("G000") and asked["top_k"] == 10 for asked in listener.asked
    )


@pytest.mark.slow
@NEEDS_WRK
def test_a_client_that_was_refused_pauses(listener: Listener, requests: Path) -> None:
    seen = Site(listener.server_port, requests, 1.0).send(1.5, clients=1, kind="image_id, new text")
    ordered = sorted(seen.samples)
    gaps = [(one.status, two.due - one.due) for one, two in itertools.pairwise(ordered)]
    assert min(gap for status, gap in gaps if status == 503) >= 0.1


@pytest.mark.slow
@NEEDS_WRK
def test_answers_to_many_clients_come_back_whole(listener: Listener, requests: Path) -> None:
    site = Site(listener.server_port, requests, 1.0)
    with site.sending(0.2, rate=500, kind="image_id, known text", patience=5) as first:
        second = site.send(1.5, clients=8, kind="image_id, known text")
    assert len(first.samples) + len(second.samples) == len(listener.asked) > 150


@pytest.mark.slow
@NEEDS_WRK
def test_known_texts_are_few(listener: Listener, requests: Path) -> None:
    site = Site(listener.server_port, requests, 1.0)
    site.send(1.5, clients=2, kind="image_id, known text")
    assert len({asked["text"] for asked in listener.asked}) == 16


@NEEDS_WRK
def test_a_server_that_is_not_there_is_an_error_of_one_message(requests: Path) -> None:
    refusal = pytest.raises(RunError, match=r"wrk could not send\n.*refused")
    with refused.port() as port, refusal:
        Site(port, requests, 1.0).send(0.2, rate=20)


def test_without_wrk_the_error_says_how_to_get_it(
    requests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="apt-get install wrk"):
        Site(1, requests, 1.0).send(0.2, clients=1)


@NEEDS_WRK
@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["known", "overload"])
def test_a_scenario_gives_its_figures(
    scenario: str, listener: Listener, requests: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in {"WARM_UP_S": 0.2, "BEFORE_S": 1.5, "AFTER_S": 1.0}.items():
        monkeypatch.setattr(serve, name, seconds)
    rows = serve.SCENARIOS[scenario](Site(listener.server_port, requests, 0.3))
    if scenario == "known":
        assert len(rows) == 9
        assert float(rows["image_id, known text: successes/s of 32 clients"]) > 0
    else:
        asked = int(float(rows["asked/s"]) * 0.3)
        assert (rows["asked"], "recovery, s" in rows) == (asked, True)


def test_the_floor_answers_as_the_core_does(tiny_bundle: Any) -> None:
    file = io.BytesIO()
    tiny_bundle.images[3].save(file, "PNG")  # without loss, so that both sides see the same pixels
    client = TestClient(floor.build_app(floor.BareModel(tiny_bundle.folder)))
    response = client.post(
        "/v1/search", files={"image": file.getvalue()}, data={"text": "is blue", "top_k": "5"}
    )
    expected = Searcher(bundle.load(tiny_bundle.folder)).search(
        [Query(tiny_bundle.images[3], "is blue", top_k=5)]
    )[0]
    results = response.json()["results"]
    assert [one["image_id"] for one in results] == [one.image_id for one in expected]
    assert [one["score"] for one in results] == pytest.approx(
        [one.score for one in expected], abs=1e-5
    )
    assert [one["category"] for one in results] == [one.category for one in expected]


def test_a_gallery_is_filled_up_around_its_own_features(tiny_bundle: Any, tmp_path: Path) -> None:
    bundles.filled(tiny_bundle.folder, tmp_path / "filled", size=30)
    own = bundle.gallery_features(bundle.read_gallery(tiny_bundle.folder))
    features = bundle.gallery_features(bundle.read_gallery(tmp_path / "filled"))
    grown = bundle.load(tmp_path / "filled")
    assert (grown.index.size, grown.gallery["image_id"][29].as_py()) == (30, "G000029")
    assert (features[:12] == own).all()
    assert (features[12:24] != own).all()


def test_a_bundle_of_random_weights_can_be_searched(tmp_path: Path) -> None:
    bundles.random("raycd-demo", tmp_path / "random", size=20)
    assert (
        len(floor.BareModel(tmp_path / "random").search(Image.new("RGB", (40, 60)), "is blue", 5))
        == 5
    )
