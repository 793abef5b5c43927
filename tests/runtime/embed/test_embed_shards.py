"""Shards of features on Ray Data: what is there is not done again, and the order is the table's."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend

from raycd import features, progress
from raycd.config import Config
from raycd.data import sources
from raycd.durable import file_lock
from raycd.errors import ConfigError
from raycd.features import shards
from raycd.features.rows import TableRows, write_table
from raycd.features.shards import ShardPlan
from raycd.features.stored import Stored
from raycd.model import compiling
from raycd.model.embed import EmbedImages, EmbedTexts
from raycd.model.encoder import Encoder
from raycd.run import alone
from raycd.runtime import cluster, datasets
from raycd.runtime.embed import embed_shards
from raycd.runtime.embed.embed_shards import ShardWork
from raycd.runtime.embed.embedding import SharedEncoder, decoders
from raycd.stores import lease

MakeEncoder = Callable[[], Encoder]
CONFIG = Config.model_validate(
    {"embed": {"batch_size": 4}, "compute": {"embed_workers": 2, "threads": 1}}
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of thirty pictures in three subfolders, of which every seventh is broken."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for n in range(30):
        path = root / f"{n % 3}" / f"{n:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 33 + n, 3), dtype=np.uint8)).save(path)
        if n % 7 == 0:
            path.write_bytes(b"not an image")
    (root / "0" / "notes.txt").write_text("no picture")
    return root


@pytest.fixture
def table(pictures: Path) -> pa.Table:
    """Return the pictures from last to first, and one that was never found."""
    paths = sorted(map(str, pictures.rglob("*.png")), reverse=True)
    return pa.table({"key": [Path(p).stem for p in paths] + ["lost"], "path": [*paths, None]})


def expected_of(keys: list[str], paths: list[Any], encoder: Encoder) -> pa.Table:
    batch = EmbedImages(encoder, CONFIG.data)({"key": keys, "path": paths})
    return features.to_table(keys, list(batch["status"]), batch["feature"])


def same(found: pa.Table, expected: pa.Table) -> bool:
    np.testing.assert_allclose(features.vectors(found), features.vectors(expected), atol=1e-5)
    both = [table.select(["key", "status"]).to_pydict() for table in (found, expected)]
    return bool(both[0] == both[1])


def whole(uri: str) -> pa.Table:
    """Return all shards there are, as one table."""
    return pa.concat_tables([pq.read_table(part) for part in shards.parts(uri).values()])


def test_shards_have_the_order_of_the_table_whatever_the_workers_do(
    ray_cluster: None, new_encoder: MakeEncoder, table: pa.Table, tmp_path: Path
) -> None:
    stored = embed_shards.embed_table(str(tmp_path), "images", table, new_encoder(), CONFIG)
    assert len(stored.parts) == 8  # of four pictures each, by two workers
    found = pa.concat_tables(stored.blocks())
    paths = table["path"].to_pylist()
    assert same(found, expected_of(table["key"].to_pylist(), paths, new_encoder()))
    assert stored.report().counts() == {"not_an_image": 5, "missing": 1}
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_texts_are_written_in_their_order(
    ray_cluster: None, new_encoder: MakeEncoder, tmp_path: Path
) -> None:
    texts = [f"Is {n} and long" for n in range(21)] + [""]
    table = pa.table({"key": texts})
    stored = embed_shards.embed_table(str(tmp_path), "texts", table, new_encoder(), CONFIG)
    found, expected = stored.features(), EmbedTexts(new_encoder())({"key": texts})["feature"]
    assert found.keys.to_pylist() == texts
    np.testing.assert_allclose(found.values.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("unit", ["images", "texts"])
def test_nothing_to_embed_is_an_empty_shard(
    ray_cluster: None, new_encoder: MakeEncoder, tmp_path: Path, unit: str
) -> None:
    empty = pa.table({name: pa.array([], pa.string()) for name in ("key", "path")})
    stored = embed_shards.embed_table(str(tmp_path), unit, empty, new_encoder(), CONFIG)
    assert stored.features().values.shape == (0, 16)


def test_only_the_shards_that_are_not_there_are_done_again(
    ray_cluster: None, new_encoder: MakeEncoder, table: pa.Table, tmp_path: Path
) -> None:
    uri, encoder = str(tmp_path), new_encoder()
    embed_shards.embed_table(uri, "images", table, encoder, CONFIG)
    before = whole(uri)
    parts = shards.parts(uri)
    for number in (2, 5):
        os.unlink(parts[number])
    times = {path: os.stat(path).st_mtime_ns for path in map(str, shards.parts(uri).values())}
    more = CONFIG.model_copy(
        update={"compute": CONFIG.compute.model_copy(update={"embed_workers": 1})}
    )
    done = encoded_rows(lambda: embed_shards.embed_table(uri, "images", table, encoder, more))
    assert done == 8  # rows, in two shards of four
    assert {path: os.stat(path).st_mtime_ns for path in times} == times
    assert whole(uri).equals(before)
    assert encoded_rows(lambda: embed_shards.embed_table(uri, "images", table, encoder, more)) == 0


def encoded_rows(work: Callable[[], object]) -> int:
    """Return how many rows the workers have encoded meanwhile, by what they report."""
    counted, results = [0], datasets.results

    def counting(*given: Any) -> Iterator[pa.Table]:
        for part in results(*given):
            counted[0] += sum(part["rows"].to_pylist())
            yield part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "results", counting)
        work()
    return counted[0]


def test_what_another_encoder_left_is_done_again(
    ray_cluster: None, new_encoder: MakeEncoder, table: pa.Table, tmp_path: Path
) -> None:
    """A stage before was trained anew, with other weights under the same fingerprint."""
    uri, other = str(tmp_path), new_encoder()
    with torch.no_grad():
        for weights in other.clip.parameters():
            weights *= 1.5
    embed_shards.embed_table(uri, "images", table, other, CONFIG)
    os.unlink(shards.parts(uri)[3])
    stored = embed_shards.embed_table(uri, "images", table, new_encoder(), CONFIG)
    found, paths = pa.concat_tables(stored.blocks()), table["path"].to_pylist()
    assert same(found, expected_of(table["key"].to_pylist(), paths, new_encoder()))


def test_images_that_were_moved_are_found_where_they_are_now(
    ray_cluster: None, new_encoder: MakeEncoder, pictures: Path, table: pa.Table, tmp_path: Path
) -> None:
    """A run may be moved between two tries, and the pictures that it has drawn with it."""
    uri, encoder = str(tmp_path / "features"), new_encoder()
    before = embed_shards.embed_table(uri, "images", table, encoder, CONFIG)
    expected = pa.concat_tables(before.blocks())
    os.unlink(shards.parts(uri)[3])
    shutil.copytree(pictures, tmp_path / "moved")
    old, new = str(pictures), str(tmp_path / "moved")
    paths = [path and path.replace(old, new) for path in table["path"].to_pylist()]
    # Nothing is where it was
    write_table(uri, [table.set_column(1, "path", pa.nulls(len(table), pa.string()))], table.schema)
    moved = table.set_column(1, "path", pa.array(paths, pa.string()))
    stored = embed_shards.embed_table(uri, "images", moved, encoder, CONFIG)
    assert same(pa.concat_tables(stored.blocks()), expected)


def test_decoding_beside_gpus_does_not_wait_for_a_cpu_where_none_is_free(
    new_encoder: MakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "cpus", lambda: 4)
    whole = CONFIG.compute.model_copy(update={"cpus_per_worker": 1.0})
    config, encoder = CONFIG.model_copy(update={"compute": whole}), new_encoder()
    reserved = [decoders(encoder, workers, config)[1]["num_cpus"] for workers in (1, 2, 4)]
    assert reserved == [1, 1, 0]
    assert [embed_shards._ahead(workers, config) for workers in (1, 2, 4)] == [3, 2, 0]


def test_batches_that_others_decode_ahead_come_in_their_order(
    ray_cluster: None, new_encoder: MakeEncoder, table: pa.Table, tmp_path: Path
) -> None:
    """As a worker on a GPU has it."""
    write_table(str(tmp_path), [table], table.schema)
    rows = TableRows(str(tmp_path), len(table))
    for ahead in (0, 3):
        shared = SharedEncoder(ray.put(new_encoder()), "fp32", 1)
        ShardWork(str(tmp_path), "images", rows, shared, CONFIG.data, 4, ahead)(0, "cpu")
        found = whole(str(tmp_path))
        paths = table["path"].to_pylist()
        assert same(found, expected_of(table["key"].to_pylist(), paths, new_encoder()))
        os.unlink(shards.parts(str(tmp_path))[0])


def test_shards_of_a_compiled_encoder_are_the_same_and_it_is_compiled_for_whole_batches_alone(
    ray_cluster: None,
    new_encoder: MakeEncoder,
    table: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiling, "BACKEND", counter)
    torch.compiler.reset()
    write_table(str(tmp_path), [table], table.schema)
    rows, compiled = TableRows(str(tmp_path), len(table)), []
    shared = SharedEncoder(ray.put(new_encoder()), "fp32", 1)
    for _ in range(2):
        ShardWork(str(tmp_path), "images", rows, shared, CONFIG.data, 4, 0, True)(0, "cpu")
        found, paths = whole(str(tmp_path)), table["path"].to_pylist()
        assert same(found, expected_of(table["key"].to_pylist(), paths, new_encoder()))
        os.unlink(shards.parts(str(tmp_path))[0])
        compiled.append(counter.frame_count)
    assert compiled[0] == compiled[1] > 0


def test_what_workers_say_is_told_once(
    ray_cluster: None, new_encoder: MakeEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Talks(ShardWork):
        def encoding(self, encoder: Encoder) -> Callable[[Any], Any]:
            progress.say("warning: it runs uncompiled")
            return EmbedTexts(encoder)

    uri, table = str(tmp_path), pa.table({"key": [f"is {n}" for n in range(9)]})
    rows, plan = embed_shards.planned(uri, table, {}, CONFIG)
    work = partial(Talks, uri, "texts", rows)
    embed_shards.complete("embed texts", work, uri, "texts", plan, new_encoder(), CONFIG)
    assert plan.shards > 1
    assert capsys.readouterr().err.count("embed texts: warning: it runs uncompiled\n") == 1


# Sources


def written_as(kind: str, pictures: Path, root: Path) -> tuple[str, list[str], list[Path]]:
    """Write the pictures as a source of a kind; return it, its keys and their files."""
    files = sorted(pictures.rglob("*.png"))
    stems = [file.stem for file in files]
    if kind == "folder":
        return str(pictures), [str(file.relative_to(pictures)) for file in files], files
    if kind == "tar":
        for number, some in enumerate((files[:12], files[12:])):
            with tarfile.open(root / f"shard-{number}.tar", "w") as archive:
                for file in some:
                    archive.add(file, f"{file.stem}.image.png")
                    text = tarfile.TarInfo(f"{file.stem}.txt")
                    text.size = 3
                    archive.addfile(text, io.BytesIO(b"red"))
        return str(root / "shard-*.tar"), stems, files
    if kind == "parquet pictures":
        for number, some in enumerate((files[:12], files[12:])):
            images = [{"bytes": file.read_bytes(), "path": file.stem} for file in some]
            pq.write_table(pa.table({"image": images}), root / f"train-{number}.parquet")
        return str(root / "train-*.parquet"), stems, files
    # Two rows of one image: it is in two categories
    rows = [{"image_id": file.stem, "path": str(file), "category": "a"} for file in files]
    rows.insert(1, rows[0] | {"category": "b"})
    if kind == "jsonl":
        (root / "gallery.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (root / "gallery.csv").write_text("\n".join(lines))
    else:
        pq.write_table(pa.Table.from_pylist(rows), root / "gallery.parquet")
    return str(root / f"gallery.{kind}"), stems, files


@pytest.mark.parametrize("kind", ["folder", "csv", "jsonl", "parquet", "parquet pictures", "tar"])
def test_a_source_of_any_kind_is_embedded_and_goes_on(
    ray_cluster: None, new_encoder: MakeEncoder, pictures: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "given").mkdir()
    source, keys, files = written_as(kind, pictures, tmp_path / "given")
    out, encoder = str(tmp_path / "out"), new_encoder()
    stored = embed_shards.embed_source(out, source, encoder, CONFIG)
    found = pa.concat_tables(stored.blocks())
    assert same(found, expected_of(keys, list(map(str, files)), encoder))
    last = list(shards.parts(out))[-1]
    os.unlink(shards.parts(out)[last])
    embed_shards.embed_source(out, source, encoder, CONFIG)
    assert whole(out).equals(found)


def test_links_to_pictures_are_pictures_and_links_to_folders_are_left(
    pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.png").symlink_to(pictures / "1" / "01.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "back").symlink_to(tmp_path)
    keys = [key for block in sources.blocks(str(tmp_path)) for key in block["key"].to_pylist()]
    assert keys == ["a.png", "gone.png"]


def test_the_content_of_a_source_changes_with_its_rows_and_its_files(tmp_path: Path) -> None:
    table, picture = tmp_path / "new.csv", tmp_path / "a.png"
    picture.write_bytes(b"a picture")
    table.write_text("image_id,path\nx,a.png\n")
    found = [sources.content(str(table))]
    assert sources.content(str(table)) == found[0]
    table.write_text("image_id,path\nx,a.png\ny,a.png\n")
    found.append(sources.content(str(table)))
    picture.write_bytes(b"another picture")
    found.append(sources.content(str(table)))
    for size in (b"", b"more"):
        (tmp_path / "0.tar").write_bytes(size)
        found.append(sources.content(f"{tmp_path}/*.tar"))
    assert len(set(found)) == 5


def test_a_folder_of_other_features_is_refused_and_kept(
    ray_cluster: None, new_encoder: MakeEncoder, pictures: Path, tmp_path: Path
) -> None:
    out = str(tmp_path)
    embed_shards.embed_source(out, f"{pictures}/0", new_encoder(), CONFIG)
    before = whole(out)
    with pytest.raises(ConfigError, match=r"something else\n.*source = .*/0\n.*source = .*/1"):
        embed_shards.embed_source(out, f"{pictures}/1", new_encoder(), CONFIG)
    assert whole(out).equals(before)


def test_a_folder_that_another_job_writes_is_refused(
    new_encoder: MakeEncoder, pictures: Path, tmp_path: Path
) -> None:
    with (
        file_lock(tmp_path / ".lock"),
        pytest.raises(ConfigError, match=rf"is in use\n.*process {os.getpid()} embeds into it"),
    ):
        embed_shards.embed_source(str(tmp_path), str(pictures), new_encoder(), CONFIG)


def test_a_folder_on_a_store_that_another_job_writes_is_refused(
    new_encoder: MakeEncoder, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEWED", 0.1)
    out = f"memory://{tmp_path.name}"
    with (
        alone(out, ConfigError),
        pytest.raises(ConfigError, match=rf"is in use\n.*process {os.getpid()} on .* embeds into"),
    ):
        embed_shards.embed_source(out, str(pictures), new_encoder(), CONFIG)


def test_a_worker_reads_from_a_store_and_writes_to_it(
    s3: dict[str, str], ray_cluster: None, new_encoder: MakeEncoder, pictures: Path, tmp_path: Path
) -> None:
    """It works in this process: Ray's own were started without the store's address."""
    from s3fs import S3FileSystem

    store, base = S3FileSystem(), f"raycd/{tmp_path.name}"
    store.put(f"{pictures}/", f"{base}/pictures/", recursive=True)
    out, encoder = f"s3://{base}/features", new_encoder()
    listed = sources.blocks(f"s3://{base}/pictures")
    count = write_table(out, listed, sources.SCHEMA)
    shards.begin(out, ShardPlan(1, count, count))
    shared = SharedEncoder(ray.put(encoder), "fp32", 1)
    rows = TableRows(out, count)
    assert ShardWork(out, "images", rows, shared, CONFIG.data, 4, 0)(0, "cpu") == 30
    files = sorted(pictures.rglob("*.png"))
    keys = [str(file.relative_to(pictures)) for file in files]
    found = pa.concat_tables(Stored.open(out).blocks())
    assert same(found, expected_of(keys, list(map(str, files)), encoder))
    assert not [path for path in store.find(f"{base}/features") if "/." in path]
