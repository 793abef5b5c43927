"""Sources of pictures and tables as users have them: what is not meant is told, nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raycd.data import catalogue, json_text, manifest, sources
from raycd.errors import DataError


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def keys(source: Path | str, root: str = "") -> list[str]:
    return [key for block in sources.blocks(str(source), root) for key in block["key"].to_pylist()]


OPEN = 'image_id,path\na,a.jpg\nb,"24 inch lamp.jpg\nc,c.jpg\n'


@pytest.mark.parametrize("text", [OPEN, OPEN.replace("lamp", '\\"lamp\\"'), OPEN + '"d",d.jpg\n'])
def test_a_quotation_mark_that_nothing_closes_swallows_no_rows(tmp_path: Path, text: str) -> None:
    (tmp_path / "gallery.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"gallery\.csv, line 3: a field begins with a quotation"):
        manifest.read(str(tmp_path), None, "gallery.csv")
    with pytest.raises(DataError, match=r"gallery\.csv, line 3: a field begins with a quotation"):
        keys(tmp_path / "gallery.csv")


@pytest.mark.parametrize(("sign", "said"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_without_commas_is_told(tmp_path: Path, sign: str, said: str) -> None:
    text = "image_id,path,title\na,a.jpg,T\n".replace(",", sign).replace("T", "red, long")
    (tmp_path / "gallery.csv").write_text(text, encoding="utf-8")
    for read in (
        lambda: manifest.read(str(tmp_path), None, "gallery.csv"),
        lambda: keys(tmp_path / "gallery.csv"),
    ):
        with pytest.raises(DataError, match=rf"gallery\.csv are not parted by commas\n.*{said}"):
            read()


def test_marks_and_lines_inside_of_fields_are_read(tmp_path: Path) -> None:
    text = '\ufeffimage_id,path,title\r\n"a ",a.jpg,"a 7"" lamp\nwith foot"\r\n b,b.jpg,5" heel\r\n'
    (tmp_path / "gallery.csv").write_bytes(text.encode())
    found = manifest.read(str(tmp_path), None, "gallery.csv").images.to_pylist()
    assert {row["image_id"]: dict(row["attributes"])["title"] for row in found} == {
        "a": 'a 7" lamp\nwith foot',
        "b": '5" heel',
    }
    assert keys(tmp_path / "gallery.csv") == ["a", "b"]


@pytest.mark.parametrize("other", ["photo.jpg", "shoes/photo.jpg"])
def test_a_packed_file_among_photographs_does_not_stand_for_all(tmp_path: Path, other: str) -> None:
    picture(tmp_path / other)
    (tmp_path / "backup.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"pictures of two kinds(.|\n)*backup\.tar beside"):
        sources.tar_files(str(tmp_path))
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "backup.parquet")
    with pytest.raises(DataError, match=r"pictures of two kinds(.|\n)*backup\.parquet beside"):
        catalogue.read(str(tmp_path), "gallery.parquet", "triplets.parquet")
    assert sources.tar_files(f"{tmp_path}/*.tar") == [f"{tmp_path}/backup.tar"]


def test_brackets_in_the_name_of_what_is_there_are_no_pattern(tmp_path: Path) -> None:
    tars, folder, table = (tmp_path / f"{name} [1]" for name in ("tars", "parquet", "table"))
    tars.mkdir()
    (tars / "a.tar").write_bytes(b"")
    assert sources.tar_files(str(tars)) == [f"{tars}/a.tar"]
    folder.mkdir()
    pq.write_table(pa.table({"image": [b"1"], "image_id": ["a"]}), folder / "a.parquet")
    assert keys(folder) == ["a"]
    picture(tmp_path / "b.jpg")
    csv = table.with_suffix(".csv")
    csv.write_text("image_id,path\nb,b.jpg\n")
    assert keys(csv) == ["b"]


def test_what_a_system_keeps_beside_packed_files_is_no_folder_of_pictures(tmp_path: Path) -> None:
    for name in ("_delta_log", ".cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "a.tar").write_bytes(b"")
    assert sources.tar_files(str(tmp_path)) == [f"{tmp_path}/a.tar"]


def test_a_name_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "photo.jpg")
    os.rename(tmp_path / "photo.jpg", os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    with pytest.raises(DataError, match=r"not UTF-8\n.*caf"):
        keys(tmp_path)


def test_a_table_of_the_usual_name_that_nobody_named_is_not_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    (tmp_path / "gallery.csv").write_text("image_id,path\na,images/a.jpg\n")
    with pytest.raises(DataError, match=r"gallery\.csv(.|\n)*give --data\.gallery gallery\.csv"):
        catalogue.read(str(tmp_path), "gallery.parquet", "triplets.parquet")


def test_triplets_of_the_usual_name_that_nobody_named_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gallery.csv").write_text("image_id,path\na,images/a.jpg\n")
    (tmp_path / "triplets.csv").write_text("reference,target,caption\na,a,x\n")
    assert len(catalogue.read(str(tmp_path), "gallery.csv", "triplets.parquet").triplets) == 0
    assert "give --data.triplets triplets.csv" in capsys.readouterr().err


def test_several_tables_of_paths_are_one_gallery(tmp_path: Path) -> None:
    for number in range(2):
        table = pa.table({"image_id": [f"i{number}"], "path": [f"i{number}.jpg"], "size": [number]})
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    for source in ("", "part-*.parquet"):
        found = manifest.read(str(tmp_path), None, source).images.to_pylist()
        assert [row["path"] for row in found] == [f"{tmp_path}/i0.jpg", f"{tmp_path}/i1.jpg"]
        assert [dict(row["attributes"]) for row in found] == [{"size": "0"}, {"size": "1"}]
        assert keys(tmp_path / source) == ["i0", "i1"]


def test_numbers_of_32_bits_are_written_as_they_were(tmp_path: Path) -> None:
    price = pa.array([0.1, 19.99], pa.float32())
    table = pa.table({"image_id": ["a", "b"], "path": ["a.jpg", "b.jpg"], "price": price})
    pq.write_table(table, tmp_path / "paths.parquet")
    inside = table.drop(["path"]).append_column("image", pa.array([b"1", b"2"]))
    pq.write_table(inside, tmp_path / "inside.parquet")
    for name in ("paths.parquet", "inside.parquet"):
        found = manifest.read(str(tmp_path), None, name).images.to_pylist()
        assert [dict(row["attributes"])["price"] for row in found] == ["0.1", "19.99"]


def test_pictures_are_those_of_a_struct_and_names_have_no_spaces(tmp_path: Path) -> None:
    photo = pa.array([{"bytes": b"1", "path": "p.jpg"}])
    table = pa.table({"image_id ": ["x1"], "md5": [b"\x01"], "photo": photo})
    pq.write_table(table, tmp_path / "a.parquet")
    [found] = manifest.read(str(tmp_path), None, "a.parquet").images.to_pylist()
    assert (found["image_id"], dict(found["attributes"])) == ("x1", {})
    assert "photo" in found["path"]
    assert "md5" not in found["path"]


def test_ids_of_any_kind_are_texts_where_images_are_embedded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"image_id": 1, "path": "a.jpg"}\n{"image_id": "b2", "path": "b.jpg"}\n'
    )
    assert keys(tmp_path / "a.jsonl") == ["1", "b2"]
    view = pa.array(["v"], pa.string_view())
    pq.write_table(pa.table({"image_id": view, "path": ["v.jpg"]}), tmp_path / "v.parquet")
    assert keys(tmp_path / "v.parquet") == ["v"]


def test_texts_that_are_not_utf_8_are_told_where_images_are_embedded(tmp_path: Path) -> None:
    bad = pa.array([b"\xff"]).view(pa.string())
    pq.write_table(pa.table({"image_id": bad, "path": ["v.jpg"]}), tmp_path / "v.parquet")
    with pytest.raises(DataError, match=r"v\.parquet cannot be read as parquet"):
        keys(tmp_path / "v.parquet")


def test_a_map_of_attributes_without_names_is_told(tmp_path: Path) -> None:
    given = pa.array([[(1, "blue")]], pa.map_(pa.int32(), pa.string()))
    table = pa.table({"image_id": ["a"], "path": ["a.jpg"], "attributes": given})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 1, attributes has the wrong shape"):
        manifest.read(str(tmp_path), None, "a.parquet")


@pytest.mark.parametrize("inside", [False, True])
def test_of_a_wide_table_only_what_is_wanted_is_read(
    tmp_path: Path, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = pa.array([[0.5, 0.5]], pa.list_(pa.float32()))
    shown = pa.array([b"1"]) if inside else pa.array(["a.jpg"])
    columns = {"image_id": [" a "], "size": [7], "embedding": wide}
    pq.write_table(
        pa.table({**columns, "image" if inside else "path": shown}), tmp_path / "a.parquet"
    )
    asked: list[list[str]] = []
    real = pq.ParquetFile.read

    def read(file: pq.ParquetFile, columns: list[str]) -> pa.Table:
        asked.append(columns)
        return real(file, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read", read)
    [found] = manifest.read(str(tmp_path), None, "a.parquet").images.to_pylist()
    assert (found["image_id"], dict(found["attributes"])) == ("a", {"size": "7"})
    assert keys(tmp_path / "a.parquet") == ["a"]
    assert asked[0] == ["image_id", "size", *([] if inside else ["path"])]
    assert asked[1:] == ([["image_id"]] if inside else [])


def test_an_id_that_is_null_beside_pictures_is_refused_where_images_are_embedded(
    tmp_path: Path,
) -> None:
    table = pa.table({"image_id": ["a", None], "image": [b"1", b"2"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 2 has no usable image_id"):
        keys(tmp_path / "a.parquet")


def test_an_object_of_many_names_is_refused_at_once_for_one_that_stands_twice() -> None:
    text = ",".join(f'"{number}": 1' for number in [*range(100_000), 99_999])
    with pytest.raises(ValueError, match="'99999' twice"):
        json_text.loads(f"{{{text}}}")
