import time

import pytest
import ray

from raycd.runtime.train import relay


@ray.remote(num_cpus=0)
def work(board: object) -> None:
    with relay.RelayedBar(board, total=12, start=2) as bar:
        for _ in range(5):
            bar.advance(2, loss=0.5)


def test_a_workers_progress_is_drawn_by_the_driver(
    ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with relay.drawn("stage 2", "triplets") as board:
        ray.get(work.remote(board))
        deadline = time.monotonic() + 20
        while ray.get(board.read.remote()).get("done") != 12 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "stage 2: 12/12 triplets (100%)" in capsys.readouterr().err


def test_without_a_message_nothing_is_drawn(
    ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with relay.drawn("stage 2", "triplets"):
        pass
    assert "stage 2" not in capsys.readouterr().err
