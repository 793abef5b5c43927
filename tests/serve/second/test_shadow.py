"""The second model in the shadow: it answers unseen, and whatever it does changes no answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray

from raycd.api import SearchRequest
from serve.args import DEFAULT, Second
from serve.engine.queries import QueryImage
from serve.galleries import Galleries
from serve.replica import Replica
from serve.second.shadow import Loaded, Outcome, Process, Seen, Shadow, overlap
from serve.shadow_process import NICE, RayProcess
from tests.serve.asking import ask, png
from tests.serve.second.conftest import Start, results

WAITING = 2


class Watched:
    """A replica whose shadow is recorded."""

    def __init__(self) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self.compared: list[tuple[float, ...]] = []
        self.replica: Replica | None = None

    def __call__(self, galleries: Galleries) -> None:
        """Record the shadow of the default gallery that has started."""
        self.replica = galleries[DEFAULT]
        observer: Any = self._shadow._observer
        counted, compared = observer.shadow, observer.compared

        def count(outcome: Outcome) -> None:
            counted(outcome)
            self.outcomes.update([outcome])

        def compare(*found: float) -> None:
            compared(*found)
            self.compared.append(found)

        observer.shadow, observer.compared = count, compare

    @property
    def pid(self) -> int:
        """Return the process of the second model."""
        call = self._shadow._process._actor.__ray_call__.remote(lambda _: os.getpid())
        return int(ray.get(call))

    def wait_for(self, compared: int) -> None:
        """Wait until so many answers were compared."""
        until(lambda: len(self.compared) == compared)

    def settled(self) -> Counter[Outcome]:
        """Return the outcomes so far, once nothing is at work."""
        until(lambda: not self._shadow._at_work)
        return Counter(self.outcomes)

    @property
    def _shadow(self) -> Any:
        assert self.replica is not None
        return self.replica.shadow


def until(state: Callable[[], object]) -> None:
    end = time.monotonic() + 180  # on a machine that does other things, too
    while not state():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def watched() -> Watched:
    return Watched()


@pytest.fixture(scope="module")
def shadowed(
    start: Start, other_bundle: Path, watched: Watched, tmp_path_factory: pytest.TempPathFactory
) -> httpx.Client:
    """Start a service of both models on a live gallery, and wait until both are there."""
    second = {"bundle": str(other_bundle), "shadow": 1.0, "waiting": WAITING}
    gallery = str(tmp_path_factory.mktemp("shadowed") / "gallery.sqlite")
    client = start("shadowed", watched, second=second, gallery=gallery, lag_s=0.2)
    until(lambda: client.get("/v1/info").json()["second"]["bundle"])
    return client


def test_overlap_is_the_share_of_the_longer_list_that_is_in_both() -> None:
    assert overlap(["a", "b", "c", "d"], ["d", "x", "a", "y"]) == 0.5
    assert overlap(["a", "b"], ["a"]) == 0.5
    assert overlap([], []) == 1.0


def test_answers_are_the_first_models_and_both_are_compared(
    first: httpx.Client,
    other: httpx.Client,
    shadowed: httpx.Client,
    watched: Watched,
    tiny_bundle: Any,
) -> None:
    image = png(tiny_bundle.images[3])
    expected = []
    asks: list[Callable[[httpx.Client], httpx.Response]] = [
        lambda client: ask(client, image, text="is blue", top_k=4),
        lambda client: ask(client, image, text="has dots", top_k=5, category="dress"),
        lambda client: ask(client, text="has long sleeves", image_id="image-2", top_k=3),
    ]
    for done, one in enumerate(asks, 1):
        answers = [one(client).json() for client in (first, other, shadowed)]
        assert results(answers[2]) == results(answers[0])
        assert answers[2]["model"] == answers[0]["model"] != answers[1]["model"]
        expected.append(overlap(*([name for name, _ in results(a)] for a in answers[:2])))
        watched.wait_for(done)
    assert [found for found, _ in watched.compared] == expected
    assert min(expected) < 1  # the models differ
    assert all(0 < seconds < 60 for _, seconds in watched.compared)
    batch = {"searches": [{"text": "is blue"}, {"text": ""}, {"image_id": "image-1"}]}
    assert shadowed.post("/v1/search/batch", json=batch).status_code == 200
    until(lambda: watched.outcomes == {"answered": len(asks) + 2})


def test_it_follows_the_live_gallery(
    shadowed: httpx.Client, watched: Watched, tiny_bundle: Any
) -> None:
    picture = {"image": ("x.png", png(tiny_bundle.images[5].rotate(90)), "image/png")}
    assert shadowed.put("/v1/gallery/new", files=picture).status_code == 201
    watched.compared.clear()

    def both_find_it() -> bool:
        asked = {"image_id": "new", "among": ["new"]}
        answer = shadowed.post("/v1/search", json=asked)
        return answer.status_code == 200 and 1.0 in [found for found, _ in watched.compared]

    until(both_find_it)
    assert shadowed.delete("/v1/gallery/new").status_code == 200


def test_while_it_is_stuck_answers_come_and_no_more_than_a_few_searches_wait(
    shadowed: httpx.Client, watched: Watched
) -> None:
    before, pid = watched.settled(), watched.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(WAITING + 3):
            assert ask(shadowed, text=f"is number {number}").status_code == 200
        assert shadowed.get("/readyz").status_code == 200
        until(lambda: watched.outcomes - before == {"dropped": 3})
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: watched.outcomes - before == {"dropped": 3, "answered": WAITING})


def test_it_yields_to_the_answers(watched: Watched) -> None:
    assert os.getpriority(os.PRIO_PROCESS, watched.pid) >= NICE


@pytest.mark.slow
def test_when_it_dies_searches_are_answered_failures_counted_and_it_comes_again(
    shadowed: httpx.Client, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    before, pid, logger = watched.settled(), watched.pid, logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    try:
        os.kill(pid, signal.SIGSTOP)
        assert ask(shadowed, text="is blue").status_code == 200
        until(lambda: watched._shadow._at_work)
        os.kill(pid, signal.SIGKILL)
        until(lambda: (watched.outcomes - before)["failed"])
        end = time.monotonic() + 120
        while not (watched.outcomes - before)["answered"]:
            assert time.monotonic() < end, watched.outcomes
            assert ask(shadowed, text="is blue").status_code == 200
            time.sleep(0.2)
    finally:
        logger.removeHandler(caplog.handler)
    said = [record for record in caplog.records if "did not answer" in record.getMessage()]
    assert len(said) == 1
    assert shadowed.get("/readyz").status_code == 200


class Outcomes:
    """What becomes of the searches of a shadow alone."""

    def __init__(self) -> None:
        self.seen: list[Outcome] = []

    def shadow(self, outcome: Outcome) -> None:
        self.seen.append(outcome)

    def compared(self, overlap: float, seconds: float) -> None:
        """Record nothing."""


class Hanging:
    """A second model that lacks an image, and hangs until it is started anew."""

    def __init__(self) -> None:
        self.hangs = True

    async def loaded(self) -> Loaded:
        return Loaded("digest", None, without=1)

    async def answer(self, asked: SearchRequest, sent: Sequence[QueryImage]) -> Seen:
        if self.hangs:
            await asyncio.sleep(1000)
        return Seen(["a"], 0.1)

    def end(self) -> None:
        self.hangs = False


def hanging_process(folder: Path) -> RayProcess:
    """Start the same as a process, which answers with what it was asked."""

    class Model:
        def __init__(self) -> None:
            self.hangs = not (folder / "started").exists()
            (folder / "started").touch()

        @ray.method(max_task_retries=-1)
        def loaded(self) -> Loaded:
            return Loaded("digest", None, without=1)

        def answer(self, asked: SearchRequest, sent: list[QueryImage]) -> Seen:
            if self.hangs:
                time.sleep(1000)
            return Seen([asked.model_dump_json(), repr(sent)], 0.1)

    return RayProcess(ray.remote(Model).options(num_cpus=0, max_restarts=-1).remote())


async def happens(state: Callable[[], object]) -> None:
    async with asyncio.timeout(120):
        while not state():
            await asyncio.sleep(0.01)


SETTINGS = Second(bundle="b", shadow=1.0, waiting=1)
ASKED = SearchRequest(text="is blue", image_base64="eA==")


async def hangs_once(process: Process) -> None:
    """Check that a process which hangs is started anew."""
    outcomes = Outcomes()
    shadow = Shadow(SETTINGS, process, outcomes, timeout_s=0.2)
    await shadow.offer(ASKED, [], [])  # before it is loaded
    shadow.start(without=1)
    for number in (2, 3):
        await happens(lambda: shadow.info().bundle)
        await shadow.offer(ASKED, [], [])
        await happens(lambda: len(outcomes.seen) == number)  # noqa: B023
    assert outcomes.seen == ["dropped", "failed", "answered"]


def test_one_that_hangs_is_given_up_and_started_anew() -> None:
    asyncio.run(hangs_once(Hanging()))


def test_one_that_answers_one_after_the_other_is_not_ended_where_the_last_is_late() -> None:
    class Slow(Hanging):
        def __init__(self) -> None:
            self.alone, self.ended, self.taken = asyncio.Lock(), 0, 0

        async def answer(self, asked: SearchRequest, sent: Sequence[QueryImage]) -> Seen:
            async with self.alone:
                self.taken += 1
                await asyncio.sleep(0.02 if self.taken < 8 else 1.5)
            return Seen(["a"], 0.1)

        def end(self) -> None:
            self.ended += 1

    async def late() -> tuple[list[Outcome], int]:
        outcomes, process = Outcomes(), Slow()
        settings = SETTINGS.model_copy(update={"waiting": 8})
        shadow = Shadow(settings, process, outcomes, timeout_s=1.2)
        shadow.start(without=1)
        await happens(lambda: shadow.info().bundle)
        for _ in range(8):
            await shadow.offer(ASKED, [], [])
        await happens(lambda: len(outcomes.seen) == 8)
        return outcomes.seen, process.ended

    seen, ended = asyncio.run(late())
    assert ended == 0
    assert {"answered", "failed"} == set(seen)


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_and_gets_each_picture_once(
    ray_cluster: Any, tmp_path: Path
) -> None:
    process = hanging_process(tmp_path)

    async def searches() -> Seen:
        await hangs_once(process)
        return await process.answer(ASKED, [QueryImage(file=b"x")])

    got, sent = asyncio.run(searches()).image_ids
    assert "eA==" not in got
    assert "b'x'" in sent


def test_one_that_would_lose_an_image_of_the_first_is_refused_and_not_asked() -> None:
    async def refused() -> list[Outcome]:
        outcomes = Outcomes()
        shadow = Shadow(SETTINGS, Hanging(), outcomes, timeout_s=0.2)
        shadow.start(without=0)
        await happens(lambda: shadow.info().refused)
        assert "has not encoded the whole gallery" in str(shadow.info().refused)
        await shadow.offer(ASKED, [], [])
        return outcomes.seen

    assert asyncio.run(refused()) == ["failed"]


def test_outcomes_overlap_and_time_are_exported(watched: Watched) -> None:
    [node] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    outcomes = watched.settled()
    total = sum(outcomes.values())
    assert total > 0
    until(
        lambda: (
            (text := httpx.get(url, timeout=10).text)
            and sum(numbers(text, "shadow_searches_total")) == total
            and sum(numbers(text, "shadow_overlap_ratio_count")) == outcomes["answered"]
            and sum(numbers(text, "shadow_seconds_count")) == outcomes["answered"]
        )
    )


def numbers(text: str, name: str) -> list[float]:
    """Return the values of a metric of ours, one for each of its tags."""
    lines = [line for line in text.splitlines() if line.startswith(f"ray_raycd_{name}{{")]
    return [float(line.split()[-1]) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("use", ["shadow", "users"])
def test_a_second_model_that_cannot_be_loaded_leaves_the_first_as_it_is(
    start: Start, first: httpx.Client, tiny_bundle: Any, tmp_path: Path, use: str
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    client = start(f"lame {use}", second={"bundle": str(tmp_path), use: 1.0})
    until(lambda: client.get("/v1/info").json()["second"]["refused"])
    said = client.get("/v1/info").json()["second"]
    assert "damaged" in said["refused"]
    assert (said["bundle"], said[use]) == (None, 1.0)
    image = png(tiny_bundle.images[0])
    answers = [ask(one, image, text="is blue").json() for one in (client, first)]
    assert results(answers[0]) == results(answers[1])
    assert client.get("/readyz").status_code == 200
