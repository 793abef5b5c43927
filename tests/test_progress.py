"""Progress in a log and on a terminal, with time under control."""

import io
import threading

import pytest

from raycd import progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_a_line_every_few_seconds_and_one_at_the_end() -> None:
    log, clock = io.StringIO(), Clock()
    with progress.Bar(
        "stage 1", total=100, unit="triplets", stream=log, clock=clock, every=5
    ) as bar:
        for _ in range(10):
            clock.now += 2
            bar.advance(10, loss=0.51234)
    assert log.getvalue().splitlines() == [
        "stage 1: 30/100 triplets (30%), 5 triplets/s, loss 0.512, 14 s left",
        "stage 1: 60/100 triplets (60%), 5 triplets/s, loss 0.512, 8 s left",
        "stage 1: 90/100 triplets (90%), 5 triplets/s, loss 0.512, 2 s left",
        "stage 1: 100/100 triplets (100%), 5 triplets/s, loss 0.512, done in 20 s",
    ]


def test_an_unknown_total_shows_no_time_left() -> None:
    log, clock = io.StringIO(), Clock()
    with progress.Bar("read", unit="images", stream=log, clock=clock, every=1) as bar:
        clock.now += 4
        bar.advance(2)
    assert log.getvalue().splitlines() == [
        "read: 2 images, 0.5 images/s",
        "read: 2 images, 0.5 images/s, done in 4 s",
    ]


def test_what_an_earlier_run_did_counts_as_done_but_not_for_the_rate() -> None:
    log, clock = io.StringIO(), Clock()
    with progress.Bar(
        "embed", total=100, unit="images", start=50, stream=log, clock=clock, every=1
    ) as bar:
        clock.now += 10
        bar.advance(10)
    assert log.getvalue().splitlines()[0] == "embed: 60/100 images (60%), 1 images/s, 40 s left"


def test_an_interrupted_stage_says_where_it_stopped() -> None:
    log, clock = io.StringIO(), Clock()
    bar = progress.Bar("mine", total=4, stream=log, clock=clock)
    clock.now += 1
    bar.advance()
    bar.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert log.getvalue() == "mine: 1/4 steps (25%), 1 steps/s, stopped\n"


def test_a_stage_of_no_steps_ends_in_a_line() -> None:
    log = io.StringIO()
    with progress.Bar("mine", total=0, stream=log, clock=Clock()):
        pass
    assert log.getvalue() == "mine: 0 steps, done in 0 s\n"


def test_a_terminal_gets_a_bar_that_is_drawn_over() -> None:
    terminal = Terminal()
    with progress.Bar("stage 1", total=2, unit="triplets", stream=terminal) as bar:
        bar.advance(2, loss=0.5)
    shown = terminal.getvalue()
    assert "\r" in shown
    assert "stage 1: 100%" in shown
    assert "2/2" in shown
    assert "loss=0.5" in shown


def test_a_message_stands_on_a_line_of_its_own_beside_a_bar() -> None:
    terminal = Terminal()
    with progress.Bar("stage 1", total=2, stream=terminal) as bar:
        progress.say("epoch 1: recall@10 41.8", stream=terminal)
        bar.advance(2)
    assert "epoch 1: recall@10 41.8\n" in terminal.getvalue()


def test_a_message_in_a_log_is_a_line() -> None:
    log = io.StringIO()
    progress.say("stage 1: already done", stream=log)
    assert log.getvalue() == "stage 1: already done\n"


def test_a_message_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    progress.say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_steps_of_several_threads_all_count() -> None:
    bar = progress.Bar("read", total=4000, stream=io.StringIO())

    def work() -> None:
        for _ in range(1000):
            bar.advance()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bar.done == 4000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
