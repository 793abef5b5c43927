"""A bucket that is busy, slow, breaks off, refuses, is gone or absent: reading and writing."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from PIL import Image
from s3fs import S3FileSystem

from raycd import stores
from raycd.config import Config
from raycd.data import sources
from raycd.data.folder import Folder
from raycd.data.images import BrokenImage, load
from raycd.errors import DataError, RaycdError, RunError
from raycd.features import shards
from raycd.features.rows import TableRows, TarRows, write_table
from raycd.features.shards import ShardPlan
from raycd.features.stored import Stored
from raycd.model.encoder import Encoder
from raycd.run import Run, alone
from raycd.runtime.embed.embed_shards import ShardWork
from raycd.runtime.embed.embedding import SharedEncoder
from raycd.stores import lease
from tests.faulty_store import Fault, FaultyStore, faulty_store
from tests.one_shard import write_whole

CONFIG = Config.model_validate({"embed": {"batch_size": 4}, "compute": {"threads": 1}})
IDENTITY = {"format": "x"}
WRITES, READS = ("PUT", "POST", "DELETE"), ("GET", "HEAD")


@pytest.fixture
def bucket(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[FaultyStore]:
    """Put the proxy between this process and the server; clients and raycd wait shortly."""
    monkeypatch.setattr(stores, "WAITS", (0.05, 0.1, 0.2))
    monkeypatch.setattr(S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with faulty_store(s3["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        S3FileSystem.clear_instance_cache()
        yield proxy


@pytest.fixture
def base(tmp_path: Path) -> str:
    return f"s3://raycd/{tmp_path.name}"


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data := io.BytesIO(), "PNG")
    return data.getvalue()


def slow(value: object) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


PASSING = ["503 SlowDown", "503 ServiceUnavailable", "500 InternalError", "gone"]


@pytest.mark.parametrize("kind", [PASSING[0], *map(slow, PASSING[1:]), "cut"])
def test_pictures_are_read_through_a_burst_of_failures(
    bucket: FaultyStore, base: str, kind: str
) -> None:
    stores.ask(base, lambda: S3FileSystem().pipe_file(f"{base}/a.png", png(0)))
    bucket.faults = [Fault(kind, ("GET",), "a.png", 2)]
    assert load(f"{base}/a.png").size == (48, 40)
    bucket.faults = [Fault(kind, ("GET",), "a.png", 9)]
    with pytest.raises(
        DataError, match=r"s3://raycd does not answer\n.*reading .*\(4 tries\)"
    ) as e:
        load(f"{base}/a.png")
    assert not isinstance(e.value, BrokenImage)


def test_an_answer_that_is_too_slow_is_asked_for_again(
    bucket: FaultyStore, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    S3FileSystem().pipe_file(f"{base}/a.png", png(0))
    monkeypatch.setattr(S3FileSystem, "read_timeout", 0.5)
    S3FileSystem.clear_instance_cache()
    bucket.faults = [Fault("slow 1.5", ("GET",), "a.png", 1)]
    assert load(f"{base}/a.png").size == (48, 40)
    assert len([each for each in bucket.asked if each.startswith("GET")]) == 2


@pytest.mark.parametrize("kind", [*map(slow, PASSING), "cut"])
def test_tar_files_and_tables_are_read_through_failures_in_the_middle(
    bucket: FaultyStore, base: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3FileSystem, "default_block_size", 4096)  # many pieces
    S3FileSystem.clear_instance_cache()
    with tarfile.open(fileobj=(data := io.BytesIO()), mode="w") as archive:
        for n in range(6):
            member = tarfile.TarInfo(f"{n}.png")
            member.size = len(png(n))
            archive.addfile(member, io.BytesIO(png(n)))
    S3FileSystem().pipe_file(f"{base}/0.tar", data.getvalue())
    lines = "".join(f"{n},{n}.png\n" for n in range(2000))
    S3FileSystem().pipe_file(f"{base}/gallery.csv", f"image_id,path\n{lines}".encode())
    bucket.faults = [Fault(kind, ("GET",), "0.tar", 2, after=3)]
    batches = list(TarRows([f"{base}/0.tar"]).batches(0, 4))
    assert [bytes(each) for batch in batches for each in batch["data"]] == [*map(png, range(6))]
    bucket.faults = [Fault(kind, ("GET",), "gallery.csv", 2, after=1)]
    found = pa.concat_tables(sources.blocks(f"{base}/gallery.csv"))
    assert bucket.faults[0].met > 2, "nothing went wrong"
    assert found["key"].to_pylist() == [str(n) for n in range(2000)]
    bucket.faults = [Fault(kind, ("GET",), "0.tar", 99, after=3)]
    with pytest.raises(DataError, match=r"does not answer\n.*reading .*0\.tar"):
        list(TarRows([f"{base}/0.tar"]).batches(0, 4))


@pytest.mark.parametrize("kind", [PASSING[0], *map(slow, PASSING[1:])])
def test_a_run_is_written_through_a_burst_of_failures(
    bucket: FaultyStore, base: str, kind: str
) -> None:
    run = Run(base, IDENTITY)
    bucket.faults = [Fault(kind, methods, "/mine/", 1) for methods in (READS, WRITES)]
    bucket.faults += [Fault(kind, WRITES, f"/metrics{n}", 2) for n in range(2)]
    with run.locked(), run.writing("mine", "abc") as writing:
        (writing.folder / "a").write_text("a")
        write_whole(f"{writing.shared}/images", pa.table({"key": ["x"]}))
    run.write_json("metrics0", 1)
    run.write_bytes("metrics1", b"2")
    assert (run.local("mine") / "a").read_text() == "a"
    assert (run.record("mine") or {})["fingerprint"] == "abc"
    assert len(shards.parts(run.path("mine", "images"))) == 1
    assert (run.read_json("metrics0"), run.read_json("metrics1")) == (1, 2)


@pytest.mark.parametrize("after", [0, *map(slow, range(1, 5)), 5])
def test_a_bucket_that_goes_while_a_stage_is_written_loses_nothing_that_workers_have_written(
    bucket: FaultyStore, base: str, after: int
) -> None:
    run = Run(base, IDENTITY)

    def write(wanted: str) -> None:
        with run.writing("mine", wanted) as writing:
            if not shards.parts(f"{writing.shared}/images"):
                write_whole(f"{writing.shared}/images", pa.table({"key": [wanted]}))
            (writing.folder / "a").write_text(wanted)

    write("old")
    gone = Fault("gone", WRITES, "", 10**6, after=2 + after)
    bucket.faults = [gone]
    with pytest.raises(RunError, match=r"s3://raycd does not answer\n.*writing ") as caught:
        write("new")
    assert "run the same command again" in str(caught.value)
    bucket.faults = []
    before = run.record("mine")
    assert before is None or before["fingerprint"] == "old"
    if before is not None:
        assert (run.local("mine") / "a").read_text() == "old"
    bucket.asked.clear()
    write("new")
    assert not [each for each in bucket.asked if each.startswith("PUT") and "unfinished" in each]
    assert (run.record("mine") or {})["fingerprint"] == "new"
    assert (run.local("mine") / "a").read_text() == "new"
    assert Stored.open(run.path("mine", "images")).parts


def test_a_stage_is_whole_in_a_bucket_where_nothing_may_be_removed(
    bucket: FaultyStore, base: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(base, IDENTITY)
    bucket.faults = [
        Fault("403 AccessDenied", ("DELETE",), times=10**6),
        Fault("403 AccessDenied", ("POST",), "delete", times=10**6),
    ]
    with run.writing("mine", "abc") as writing:
        write_whole(f"{writing.shared}/images", pa.table({"key": ["x"]}))
    assert (run.record("mine") or {})["fingerprint"] == "abc"
    warning, *_ = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: {base}/.unfinished/mine-* is left over: ")


def test_wrong_credentials_are_told_for_reading_and_for_writing(
    bucket: FaultyStore, base: str
) -> None:
    bucket.faults = [Fault("403 SignatureDoesNotMatch", times=10**6)]
    with pytest.raises(
        DataError, match=r"refuses to give .*a\.png\n(.*\n)+.*check its credentials"
    ):
        load(f"{base}/a.png")
    with pytest.raises(DataError, match="refuses to give"):
        Folder(base)
    with pytest.raises(DataError, match="refuses to give"):
        list(sources.blocks(base))
    with pytest.raises(RunError, match="refuses to give"):
        Run(base, IDENTITY)
    bucket.faults = [Fault("403 AccessDenied", WRITES, times=10**6)]
    with pytest.raises(RunError, match=r"refuses to take .*\n.*AccessDenied.*\n.*right to write"):
        Run(base, IDENTITY)
    with pytest.raises(DataError, match=r"refuses to take .*part-00000\.parquet"):
        shards.write(base, 0, pa.table({"key": ["x"]}))
    with pytest.raises(RaycdError, match="refuses to take"), alone(base, RunError):
        pass


def test_a_bucket_that_is_not_there_is_told_and_not_made(bucket: FaultyStore) -> None:
    for question in (
        lambda: load("s3://no-such/a.png"),
        lambda: Folder("s3://no-such/data"),
        lambda: list(sources.blocks("s3://no-such/pictures")),
        lambda: shards.write("s3://no-such/out", 0, pa.table({"key": ["x"]})),
        lambda: Run("s3://no-such/runs/one", IDENTITY),
    ):
        with pytest.raises(RaycdError, match=r"no bucket s3://no-such|s3://no-such\S* is absent"):
            question()
    assert not S3FileSystem().exists("no-such")


def test_a_worker_embeds_through_a_burst_and_a_shard_is_whole_or_absent(
    bucket: FaultyStore, base: str, ray_cluster: None, new_encoder: Callable[[], Encoder]
) -> None:
    for n in range(12):
        S3FileSystem().pipe_file(f"{base}/pictures/{n:02d}.png", png(n))
    out = f"{base}/features"
    count = write_table(out, sources.blocks(f"{base}/pictures"), sources.SCHEMA)
    shards.begin(out, ShardPlan(3, count, 4))
    shared = SharedEncoder(ray.put(new_encoder()), "fp32", 1)
    work = ShardWork(out, "images", TableRows(out, 4), shared, CONFIG.data, 4, 0)
    bucket.faults = [
        Fault("503 SlowDown", ("GET",), "pictures", 3),
        Fault("gone", ("GET",), "rows.parquet", 2),
        Fault("cut", ("GET",), "pictures/05", 2),
        Fault("503 ServiceUnavailable", ("PUT",), "part-00001", 3),
    ]
    assert [work(number, "cpu") for number in range(2)] == [4, 4]
    bucket.faults = [Fault("gone", ("PUT",), "part-00002", 99)]
    with pytest.raises(DataError, match=r"does not answer\n.*writing .*part-00002"):
        work(2, "cpu")
    assert list(shards.parts(out)) == [0, 1]
    bucket.faults = []
    work(2, "cpu")
    found = pa.concat_tables(Stored.open(out).blocks())
    assert found["status"].to_pylist() == ["ok"] * 12


def test_a_job_whose_store_is_busy_keeps_its_lease(
    bucket: FaultyStore, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWED", 0.1)
    run = Run(base, IDENTITY)
    # The put arrived, its answer did not: what is there is this process's own
    bucket.faults = [
        Fault("503 SlowDown", READS, ".lease", 2),
        Fault("lost", ("PUT",), ".lease", 2),
    ]
    with run.locked():
        bucket.faults = [Fault("503 SlowDown", path=".lease", times=20)]
        time.sleep(0.5)
        run.write_json("a.json", 1)
    assert run.read_json("a.json") == 1
