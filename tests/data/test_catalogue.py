"""Catalogues: a table without triplets, a folder of pictures, and the texts of an image."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from raycd.config import DataConfig
from raycd.data import sources, titles
from raycd.data.catalogue import labels
from raycd.data.read import read
from raycd.errors import DataError


def pictures(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(root / name)


def catalogue(root: Path, **settings: str) -> DataConfig:
    return DataConfig.model_validate({"format": "catalogue", "root": str(root), **settings})


def test_a_folder_is_a_catalogue_whose_categories_are_its_subfolders(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "hats/summer/b.png", "hats/c.png", "shoes/d.png")
    found = read(catalogue(tmp_path))
    assert set(found.categories()) == {"all", "hats", "shoes"}
    assert found.gallery_ids("hats", "val") == ["hats/c.png", "hats/summer/b.png"]
    assert found.gallery_ids("hats", "train") == found.gallery_ids("hats", "val")
    assert len(found.triplets) == 0
    paths = dict(
        zip(*(found.images[name].to_pylist() for name in ("image_id", "path")), strict=True)
    )
    assert paths["a.png"] == str(tmp_path / "a.png")


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pictures"):
        read(catalogue(tmp_path))


def test_a_table_needs_no_triplets_and_those_that_there_are_are_read(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("image_id,path,colour\n1,1.png,red\n2,2.png,blue\n")
    found = read(catalogue(tmp_path, gallery="shop.csv"))
    assert len(found.triplets) == 0
    assert found.images["attributes"].to_pylist() == [[("colour", "red")], [("colour", "blue")]]
    table = "reference,target,caption,split\n1,2,is blue,val\n"
    (tmp_path / "asked.csv").write_text(table)
    found = read(catalogue(tmp_path, gallery="shop.csv", triplets="asked.csv"))
    assert found.triplets["split"].to_pylist() == ["val"]


@pytest.mark.parametrize("table", ["gallery", "triplets"])
def test_a_table_that_was_named_has_to_be_there(tmp_path: Path, table: str) -> None:
    (tmp_path / "shop.csv").write_text("image_id,path\n1,1.png\n")
    with pytest.raises(DataError, match=r"absent\.csv"):
        read(catalogue(tmp_path, **{"gallery": "shop.csv", table: "absent.csv"}))


def test_an_image_has_its_title_its_attributes_and_both_as_texts(tmp_path: Path) -> None:
    both = {"title": " Blue shirt ", "colour": "blue", "size": "7"}
    assert titles.texts(both, "title") == ("Blue shirt, blue, 7", "Blue shirt", "blue, 7")
    assert titles.texts({"colour": "blue"}, "title") == ("blue",)
    assert titles.texts({"name": "Blue shirt"}, "name") == ("Blue shirt",)
    assert titles.texts({}, "title") == ()
    (tmp_path / "shop.csv").write_text(
        "image_id,path,title,split\n1,1.png,One,train\n2,2.png,,train\n3,3.png,Three,val\n"
    )
    found = read(catalogue(tmp_path, gallery="shop.csv"))
    assert titles.of_dataset(found, "train", "title") == {"1": ("One",)}


def test_images_that_are_all_said_to_be_trains_are_searched_too(tmp_path: Path) -> None:
    (tmp_path / "gallery.csv").write_text("image_id,path,split\n1,1.png,train\n2,2.png,train\n")
    found = read(catalogue(tmp_path, gallery="gallery.csv"))
    assert found.gallery_ids("all", "train") == found.gallery_ids("all", "val") == ["1", "2"]
    (tmp_path / "gallery.csv").write_text("image_id,path,split\n1,1.png,train\n2,2.png,val\n")
    found = read(catalogue(tmp_path, gallery="gallery.csv"))
    assert found.gallery_ids("all", "val") == ["2"]
    rows = "image_id,path,split\n1,1.png,train\n2,2.png,test\n1,1.png,test\n"
    (tmp_path / "gallery.csv").write_text(rows)
    found = read(catalogue(tmp_path, gallery="gallery.csv"))
    assert found.gallery_ids("all", "val") == ["1", "2"]


def test_labels_are_those_of_a_table_or_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text(
        "image_id,path,category,price\n1,1.png,dress,9\n1,1.png,shirt,9\n2,2.png,all,\n"
    )
    assert labels(str(tmp_path / "new.csv")) == {
        "1": (["dress", "shirt"], {"price": "9"}),
        "2": ([], {}),
    }
    pictures(tmp_path / "shop", "a.png", "hats/b.png")
    assert labels(str(tmp_path / "shop")) == {"a.png": ([], {}), "hats/b.png": (["hats"], {})}
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").touch()
    assert labels(str(tmp_path / "shards")) == {}


def test_the_root_of_a_store_is_a_source_of_pictures(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    bucket = f"memory://{tmp_path.name}"
    for name in ("a.png", "hats/b.png"):
        MemoryFileSystem().pipe(f"/{tmp_path.name}/{name}", buffer.getvalue())
    found = read(DataConfig.model_validate({"format": "catalogue", "root": bucket}))
    assert set(found.categories()) == {"all", "hats"}
    assert pa.concat_tables(sources.blocks(bucket))["key"].to_pylist() == ["a.png", "hats/b.png"]


def test_every_picture_of_a_folder_is_named_and_nothing_that_a_system_keeps_there(
    tmp_path: Path,
) -> None:
    pictures(tmp_path, "a.png")
    for name in ("b.JPE", "c.jfif", "d.heic", "e.avif", "notes.txt", "._a.png", ".t/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
    found = read(catalogue(tmp_path)).images["image_id"].to_pylist()
    assert found == ["a.png", "b.JPE", "c.jfif", "d.heic", "e.avif"]


def test_labels_of_a_folder_of_parquet_files_are_those_of_its_columns(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png")
    picture = {"bytes": (tmp_path / "a.png").read_bytes(), "path": "shoes/a.png"}
    table = pa.table({"image": [picture], "category": ["boots"], "colour": ["red"]})
    (tmp_path / "pq").mkdir()
    pq.write_table(table, tmp_path / "pq" / "part-0.parquet")
    expected = {"shoes/a.png": (["boots"], {"colour": "red"})}
    assert labels(str(tmp_path / "pq")) == labels(str(tmp_path / "pq" / "*.parquet")) == expected
