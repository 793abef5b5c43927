import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raycd import bundle
from raycd.bundle import FILES, MANIFEST, Bundle
from raycd.bundle.table import TableFeatures
from raycd.config import Config, IndexConfig
from raycd.errors import ConfigError, WeightsError
from raycd.model import fusion
from raycd.search.query import Query
from raycd.search.searcher import Searcher


@pytest.fixture
def copy(tiny_bundle: Any, tmp_path: Path) -> Path:
    """Return a copy of the bundle, to damage."""
    return Path(shutil.copytree(tiny_bundle.folder, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def loaded(tiny_bundle: Any) -> Bundle:
    return bundle.load(tiny_bundle.folder)


def write(folder: Path, parts: Bundle, *, texts: Sequence[str] = (), **changes: Any) -> None:
    changes.setdefault("gallery", bundle.read_gallery(parts.folder))
    parts = replace(parts, **changes)
    bundle.write(
        folder,
        parts.encoder,
        parts.head,
        parts.head_config,
        parts.gallery,
        parts.config,
        {},
        example_texts=texts,
    )


def rewrite_manifest(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | changes))


def test_the_manifest_says_what_the_bundle_is(tiny_bundle: Any, loaded: Bundle) -> None:
    manifest = loaded.manifest
    assert (manifest.format, manifest.preset, manifest.encoder.name) == (2, "demo", "raycd-demo")
    assert manifest.encoder.fingerprint == loaded.encoder.fingerprint()
    assert manifest.index.model_dump() == {
        "kind": "flat",
        "size": 12,
        "dim": 96,
        "recall": 1.0,
        "effort": 0,
    }
    assert manifest.metrics == {"average": {"recall@10": 0.5}}
    assert manifest.created.endswith("+00:00")
    assert Config.model_validate(manifest.config) == loaded.config
    assert set(manifest.files) == set(FILES)
    on_disk = {
        str(path.relative_to(tiny_bundle.folder))
        for path in tiny_bundle.folder.rglob("*")
        if path.is_file()
    }
    assert on_disk == {*FILES, MANIFEST}


def test_a_round_trip_answers_queries_identically(
    tiny_bundle: Any, loaded: Bundle, tmp_path: Path
) -> None:
    write(tmp_path / "again", loaded)
    queries = [Query(image, "is blue", top_k=5) for image in tiny_bundle.images[:3]]
    assert Searcher(bundle.load(tmp_path / "again")).search(queries) == Searcher(loaded).search(
        queries
    )


def test_a_bundle_of_a_moved_run_names_its_pictures_where_they_are(
    loaded: Bundle, tmp_path: Path
) -> None:
    old, new = tmp_path / "old" / "run", tmp_path / "new" / "run"
    images = old / "catalogue" / "images"
    images.mkdir(parents=True)
    size = loaded.index.size
    table = bundle.read_gallery(loaded.folder)
    gallery = bundle.gallery_table(
        table["image_id"].to_pylist(),
        table["categories"].to_pylist(),
        [*(f"{images}/{n}.jpg" for n in range(size - 2)), None, "/elsewhere/x.jpg"],
        bundle.gallery_features(table),
        loaded.encoder.fingerprint(),
        run=str(old),
    )
    write(old / "bundle", loaded, gallery=gallery)
    assert bundle.load(old / "bundle").gallery["path"][0].as_py() == f"{images}/0.jpg"
    shutil.move(old, new)
    paths = bundle.load(new / "bundle").gallery["path"].to_pylist()
    assert paths[0] == f"{new}/catalogue/images/0.jpg"
    assert paths[-2:] == [None, "/elsewhere/x.jpg"]


def test_gallery_features_keep_their_values(loaded: Bundle) -> None:
    features = np.arange(6, dtype=np.float32).reshape(2, 3)
    table = bundle.gallery_table(["a", "b"], [["x"], []], ["a.jpg", None], features, "f")
    assert np.array_equal(bundle.gallery_features(table), features)
    assert np.array_equal(bundle.gallery_features(table.slice(1)), features[1:])


def test_a_loaded_gallery_leaves_its_features_to_the_index(loaded: Bundle) -> None:
    table = bundle.read_gallery(loaded.folder)
    assert table.drop_columns("feature").equals(loaded.gallery)
    every = np.arange(loaded.index.size)
    features = loaded.index.vectors(every) * loaded.index.lengths(every)[:, None]
    assert features == pytest.approx(bundle.gallery_features(table), rel=1e-6)


def test_an_approximate_index_is_measured_on_queries_of_example_texts(
    loaded: Bundle, tmp_path: Path
) -> None:
    config = loaded.config.model_copy(update={"index": IndexConfig(kind="hnsw", recall=0.9)})
    write(tmp_path / "bundle", loaded, config=config, texts=["is blue", "has long sleeves"])
    again = bundle.load(tmp_path / "bundle")
    assert (again.index.kind, again.index.size, again.index.recall) == (
        "hnsw",
        12,
        again.manifest.index.recall,
    )
    assert again.manifest.example_texts == ["is blue", "has long sleeves"]


def test_features_of_a_table_are_read_in_any_parts_whatever_its_chunks(loaded: Bundle) -> None:
    features = np.arange(30, dtype=np.float32).reshape(10, 3)
    ids = [str(number) for number in range(10)]
    table = bundle.gallery_table(ids, [[]] * 10, [None] * 10, features, "f")
    chunked = pa.concat_tables([table.slice(0, 4), table.slice(4)])
    read = TableFeatures(chunked)
    assert read.shape == (10, 3)
    for rows in (slice(0, 3), slice(2, 7), slice(8, 20), np.array([9, 0, 5])):
        np.testing.assert_array_equal(read[rows], features[rows])


@pytest.mark.parametrize("kind", ["half", "sq8", "rabitq"])
def test_a_bundle_of_a_mapped_index_is_loaded_and_searched(
    loaded: Bundle, tmp_path: Path, kind: Any
) -> None:
    config = loaded.config.model_copy(update={"index": IndexConfig(kind=kind, recall=0.9)})
    write(tmp_path / "bundle", loaded, config=config, texts=["is blue", "has long sleeves"])
    again = bundle.load(tmp_path / "bundle")
    assert again.manifest.index.kind == again.index.kind == kind
    every = np.arange(again.index.size)
    # The tiny encoder's images are nearly alike, so only their cosines can be told
    scores, positions = again.index.search(loaded.index.vectors(every), 12, exact=True)
    true_scores, _ = loaded.index.search(loaded.index.vectors(every), 12)
    np.testing.assert_allclose(scores, true_scores, atol=5e-4)
    assert (np.sort(positions) == every).all()
    np.testing.assert_allclose(
        again.index.vectors(every), loaded.index.vectors(every), rtol=2**-10, atol=1e-6
    )
    assert np.array_equal(again.index.lengths(every), loaded.index.lengths(every))


def test_a_gallery_that_does_not_fit_into_the_memory_is_refused_and_nothing_is_written(
    loaded: Bundle, tmp_path: Path
) -> None:
    settings = IndexConfig(kind="flat", memory_mib=1)
    count = 2**20 // (4 * loaded.index.dim) + 1
    features = np.ones((count, loaded.index.dim), np.float32)
    table = bundle.gallery_table(
        [str(number) for number in range(count)],
        [[]] * count,
        [None] * count,
        features,
        loaded.manifest.encoder.fingerprint,
    )
    with pytest.raises(ConfigError, match=r"index\.memory_mib as flat(?s:.*)at least 2 MiB"):
        write(
            tmp_path / "bundle",
            loaded,
            gallery=table,
            config=loaded.config.model_copy(update={"index": settings}),
        )
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_tampered_byte_in_any_file_is_refused(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(WeightsError):
        bundle.load(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(WeightsError, match=f"not whole\n.*{name}|{name} cannot be read"):
        bundle.load(copy)


def test_no_bundle_another_format_and_a_changed_manifest_are_refused(
    copy: Path, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match="holds no bundle"):
        bundle.load(tmp_path)
    rewrite_manifest(copy, metrics={"average": {"recall@10": 1.0}})
    with pytest.raises(WeightsError, match="changed after it was written"):
        bundle.load(copy)
    rewrite_manifest(copy, surprise=1)
    with pytest.raises(WeightsError, match="surprise"):
        bundle.load(copy)
    rewrite_manifest(copy, format=1)
    with pytest.raises(WeightsError, match=r"format 1\n.*format 2.*\n.*run the job again"):
        bundle.load(copy)
    (copy / MANIFEST).write_text("[]")
    with pytest.raises(WeightsError, match="format None"):
        bundle.load(copy)


def test_settings_that_this_version_cannot_read_are_refused(copy: Path) -> None:
    manifest = bundle.verify(copy).model_copy(
        update={"config": {"of_the_future": 1}, "raycd": "9.0"}
    )
    rewrite_manifest(copy, config=manifest.config, raycd="9.0", digest=manifest.own_digest())
    with pytest.raises(WeightsError, match=r"raycd 9\.0; of_the_future"):
        bundle.load(copy)


def test_a_head_and_an_encoder_of_different_size_are_refused(
    loaded: Bundle, tmp_path: Path
) -> None:
    settings = replace(loaded.head_config, dim=64)
    with pytest.raises(WeightsError, match="different size"):
        write(tmp_path / "bundle", loaded, head_config=settings, head=fusion.create(settings))
    assert list(tmp_path.iterdir()) == []


def test_features_of_another_encoder_are_refused(loaded: Bundle, tmp_path: Path) -> None:
    features = bundle.gallery_features(bundle.read_gallery(loaded.folder))
    other = bundle.gallery_table(
        [str(i) for i in range(12)], [[]] * 12, [None] * 12, features, "another"
    )
    with pytest.raises(WeightsError, match="measured by another encoder"):
        write(tmp_path / "bundle", loaded, gallery=other)
    with pytest.raises(WeightsError, match="measured by another encoder"):
        write(tmp_path / "bundle", loaded, gallery=other.replace_schema_metadata(None))


def test_a_manifest_of_another_encoder_is_refused(copy: Path) -> None:
    manifest = bundle.verify(copy)
    other = manifest.model_copy(
        update={"encoder": manifest.encoder.model_copy(update={"fingerprint": "0"})}
    )
    rewrite_manifest(copy, encoder=other.encoder.model_dump(), digest=other.own_digest())
    with pytest.raises(WeightsError, match="another encoder than it holds"):
        bundle.load(copy)


def test_a_failure_keeps_the_older_bundle(
    loaded: Bundle, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space"):
        write(copy, loaded)
    monkeypatch.undo()
    assert bundle.load(copy).manifest == loaded.manifest
    assert [path.name for path in copy.parent.iterdir()] == ["bundle"]


def test_heads_without_weights_fit_too(loaded: Bundle, tmp_path: Path) -> None:
    settings = fusion.HeadConfig("sum", loaded.encoder.dim)
    write(tmp_path / "bundle", loaded, head=fusion.create(settings), head_config=settings)
    assert isinstance(bundle.load(tmp_path / "bundle").head, torch.nn.Module)


def test_a_password_in_the_settings_is_not_in_the_manifest(loaded: Bundle, tmp_path: Path) -> None:
    root = {"data": {"format": "cirr", "root": "https://ann:secret@host/cirr"}}
    write(tmp_path / "bundle", loaded, config=Config.model_validate(root))
    assert "secret" not in (tmp_path / "bundle" / MANIFEST).read_text()
    assert bundle.load(tmp_path / "bundle").config.data.root == "https://ann:***@host/cirr"
