"""How further galleries are declared, what cannot be, and what each of them takes over."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from raycd.errors import ConfigError
from serve import app
from serve import galleries as of_serve
from serve.args import DEFAULT, ServeArgs, Wanted
from serve.errors import NotLoaded
from serve.galleries import Galleries
from serve.monitoring.metrics import Metrics
from serve.start import running

SHOES = {"shoes": {"bundle": "/b/shoes/bundle"}}


def test_they_are_read_from_a_file_the_environment_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("galleries:\n  shoes: {bundle: /b/shoes, gallery: none}\n")

    def read(*argv: str) -> dict[str, tuple[str, str]]:
        galleries = app._read(argv).config.galleries
        return {name: (one.bundle, one.gallery) for name, one in galleries.items()}

    assert read() == {}
    assert read("--config", str(file)) == {"shoes": ("/b/shoes", "none")}
    url = "postgresql://ann:s3cret@db/raycd"
    hats = json.dumps({"hats": {"bundle": "/b/hats", "gallery": url}})
    monkeypatch.setenv("RAYCD_SERVE__GALLERIES", hats)
    assert read("--config", str(file)) == {"hats": ("/b/hats", url)}
    assert read("--galleries", json.dumps(SHOES)) == {"shoes": ("/b/shoes/bundle", "")}
    with pytest.raises(ConfigError, match="set RAYCD_SERVE__GALLERIES") as caught:
        read("--galleries", hats)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"Shoes": {"bundle": "b"}}, "'Shoes' is none"),
        ({"a/b": {"bundle": "b"}}, "'a/b' is none"),
        ({DEFAULT: {"bundle": "b"}}, "other names than default"),
        ({"shoes": {}}, "a bundle for shoes"),
        ({"shoes": "b"}, "a mapping of bundle, gallery, gallery_engine, pictures for shoes"),
        ({"shoes": {"bundle": "b", "database": "x"}}, "'database' is none"),
        ({"shoes": {"bundle": "b", "gallery": 1}}, "a text as gallery of shoes"),
        ({"shoes": {"bundle": "models:/raycd@champion"}}, "shoes: a bundle of the registry"),
        (
            {"shoes": {"bundle": "b", "gallery": "none", "gallery_engine": "milvus://h:1"}},
            "shoes: gallery_engine needs the gallery's database",
        ),
        ({"shoes": {"bundle": "/b/own/other"}}, "default and shoes have the same one"),
        (
            {"shoes": {"bundle": "/b/s/x", "gallery": "/b/own/../own/gallery.sqlite"}},
            "default and shoes have the same one; set gallery of shoes",
        ),
        (
            {
                "a": {"bundle": "/b/a/x", "gallery": "postgresql://ann:s3cret@db/raycd"},
                "b": {"bundle": "/b/b/x", "gallery": "postgresql://bob@db/raycd"},
            },
            "a database for each gallery: a and b",
        ),
        (
            {
                "a": {"bundle": "/b/a/x", "gallery": "postgresql+psycopg://db:5432/raycd"},
                "b": {"bundle": "/b/b/x", "gallery": "postgresql://db/raycd?sslmode=require"},
            },
            "a database for each gallery: a and b",
        ),
        (
            {
                "a": {"bundle": "/b/a/x", "gallery": "sqlite:////b/g.sqlite"},
                "b": {"bundle": "/b/b/x", "gallery": "/b/g.sqlite"},
            },
            "a database for each gallery: a and b",
        ),
        (
            {
                "a": {"bundle": "/b/a/x", "gallery": "/b/g.sqlite"},
                "b": {"bundle": "/b/b/x", "pictures": "file:///b/g.sqlite.pictures"},
            },
            "a folder of pictures for each gallery: a and b",
        ),
        (
            {
                "a": {"bundle": "/b/a/x", "pictures": "s3://shop/pictures"},
                "b": {"bundle": "/b/b/x", "pictures": "s3://shop/pictures/"},
            },
            "a folder of pictures for each gallery: a and b",
        ),
    ],
)
def test_what_cannot_be_is_one_message(wrong: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="galleries") as caught:
        ServeArgs.model_validate({"bundle": "/b/own/bundle", "galleries": wrong})
    assert said in str(caught.value)
    file = tmp_path / "service.json"
    file.write_text(json.dumps({"bundle": "/b/own/bundle", "galleries": wrong}))
    with pytest.raises(ConfigError, match="galleries: impossible value") as told:
        app._read(["--config", str(file)])
    assert said in " ".join(str(told.value).split())
    assert "s3cret" not in str(told.value)


def test_one_gallery_may_have_the_bundle_of_another_and_no_database() -> None:
    same = {"bundle": "/b/own/bundle", "gallery": "none"}
    args = ServeArgs.model_validate({**same, "galleries": {"shoes": same, "hats": same}})
    assert args.of("shoes").bundle == args.bundle


def test_a_named_gallery_takes_the_limits_and_neither_places_nor_a_second_model() -> None:
    args = ServeArgs.model_validate(
        {
            "gallery": "/b/own.sqlite",
            "pictures": "/b/pictures",
            "max_top_k": 50,
            "second": {"bundle": "/b/second", "users": 0.5},
            "galleries": SHOES,
        }
    )
    shoes = args.of("shoes")
    assert (shoes.bundle, shoes.gallery, shoes.pictures) == ("/b/shoes/bundle", "", "")
    assert (shoes.max_top_k, shoes.second.bundle) == (50, "")
    assert args.of(DEFAULT) is args


def test_a_full_gallery_leaves_room_in_a_replica_for_the_others() -> None:
    def room(galleries: Any) -> int:
        args = ServeArgs.model_validate({"galleries": galleries})
        deployment: Any = running.application(args)._bound_deployment
        return int(deployment._deployment_config.max_ongoing_requests)

    assert room(SHOES) - room({}) == 4 * ServeArgs().max_queue


def test_the_command_looks_at_each_bundle_before_it_starts(
    tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_bundle.folder.parent)
    given = {"shoes": {"bundle": tiny_bundle.folder.name, "gallery": "shoes.sqlite"}}
    wanted = app._read(["--galleries", json.dumps(given)]).config
    shoes = app._arguments(wanted, Path("/bundle")).galleries["shoes"]
    assert shoes.bundle == str(tiny_bundle.folder)
    assert shoes.gallery == str(Path("shoes.sqlite").absolute())


def test_the_command_starts_without_the_bundle_of_a_gallery_or_of_the_second_model(
    tiny_bundle: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_bundle.folder, damaged)
    (damaged / "gallery.parquet").write_bytes(b"")
    given = {
        "absent": {"bundle": str(tmp_path), "gallery": "none"},
        "damaged": {"bundle": str(damaged), "gallery": "none"},
        "away": {"bundle": "memory://nowhere/bundle", "gallery": "none"},
    }
    second = ["--second.bundle", str(tmp_path), "--second.users", "0.5"]
    wanted = app._read(["--galleries", json.dumps(given), *second]).config
    args = app._arguments(wanted, Path("/bundle"))
    assert {name: one.bundle for name, one in args.galleries.items()} == {
        name: one["bundle"] for name, one in given.items()
    }
    assert args.second.bundle == str(tmp_path)
    said = capsys.readouterr().err
    for of in ("the second model", *(f"the gallery {name}" for name in given)):
        assert f"warning: the bundle of {of} cannot be loaded" in said


def test_a_gallery_that_is_not_loaded_is_tried_once_each_time(
    ray_cluster: Any, tiny_bundle: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = {"bundle": str(tiny_bundle.folder), "gallery": "none", "threads": 1}
    shoes = {"bundle": str(tmp_path), "gallery": "none"}
    args = ServeArgs.model_validate({**own, "galleries": {"shoes": shoes}})
    galleries = Galleries(args, name="tried", observer=Metrics().of)
    with caplog.at_level(logging.ERROR):
        for again in (0, 1):
            wanted = Wanted(bundle=args.bundle, again=again, galleries={"shoes": str(tmp_path)})
            asyncio.run(galleries.change_bundles(wanted.model_dump()))
    assert "the gallery shoes is not loaded" in caplog.text
    assert "the old one goes on" not in caplog.text


def test_a_gallery_changes_its_bundle_and_another_refuses_its_own(
    ray_cluster: Any, tiny_bundle: Any, bundle_with_head: Any, tmp_path: Path
) -> None:
    own = {"bundle": str(tiny_bundle.folder), "gallery": "none", "threads": 1}
    named = {"bundle": str(tiny_bundle.folder), "gallery": "none"}
    args = ServeArgs.model_validate({**own, "galleries": {"hats": named, "shoes": named}})
    galleries = Galleries(args, name="changing", observer=Metrics().of)
    before = Wanted(bundle=args.bundle)
    changed = str(bundle_with_head("sum"))
    after = Wanted(bundle=args.bundle, again=1, galleries={"hats": changed, "shoes": str(tmp_path)})

    async def change() -> None:
        await galleries.change_bundles(before.model_dump())
        await galleries.change_bundles(after.model_dump())
        await galleries.check_canaries()

    asyncio.run(change())
    said = galleries.bundle_infos()
    assert [bool(info.refused) for info in said.values()] == [False, False, True]
    assert said["hats"].digest != said[DEFAULT].digest == said["shoes"].digest
    settled = after.but(running.refusing(said), before, args)
    assert (settled.bundle, settled.again) == (args.bundle, 1)
    assert settled.galleries == {"hats": changed, "shoes": args.bundle}
    assert after.but([DEFAULT, "hats", "shoes"], before, args) is before


def test_a_gallery_that_cannot_be_loaded_stops_no_other_and_comes_once_it_can(
    ray_cluster: Any, tiny_bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_serve, "AGAIN_S", 0.0)
    database, absent = tmp_path / "damaged.sqlite", tmp_path / "absent"
    database.write_bytes(b"no database" * 1000)
    bundle = str(tiny_bundle.folder)
    named = {
        "shoes": {"bundle": str(absent), "gallery": "none"},
        "hats": {"bundle": bundle, "gallery": str(database)},
    }
    own = {"bundle": bundle, "gallery": "none", "threads": 1}
    args = ServeArgs.model_validate({**own, "galleries": named})
    galleries = Galleries(args, name="lacking", observer=Metrics().of)

    async def start() -> None:
        await galleries.change_bundles(Wanted(bundle=bundle).model_dump())
        assert [replica.gallery for replica in galleries] == [DEFAULT]
        for name in named:
            with pytest.raises(NotLoaded, match=f"gallery '{name}' is not loaded"):
                galleries[name]
        said = galleries.bundle_infos()
        assert [bool(said[name].refused) for name in galleries.names] == [False, True, True]
        shutil.copytree(bundle, absent)
        database.unlink()
        while galleries.refused:
            await galleries.check_canaries()
            await asyncio.sleep(0.05)
        assert {replica.gallery for replica in galleries} == {DEFAULT, *named}
        await galleries.check_canaries()

    asyncio.run(asyncio.wait_for(start(), 60))
    for replica in galleries:
        replica.engine.close()
