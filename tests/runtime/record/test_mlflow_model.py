"""A registered bundle is a model that MLflow itself loads, serves and describes."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

import raycd
from raycd import bundle
from raycd.config import Config
from raycd.errors import DataError
from raycd.runtime.record import mlflow_model, registry
from raycd.runtime.record.tracking import Tracker
from raycd.search.query import Query
from raycd.search.searcher import Searcher
from serve.start.local import free_port
from tests.processes import wait_for

MODEL = "models:/raycd/1"


@pytest.fixture(scope="module", autouse=True)
def uri(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Any) -> Iterator[str]:
    """Register the tiny bundle in a registry that this process then uses."""
    runs = tmp_path_factory.mktemp("runs")
    with Tracker.open(Config(preset="demo"), runs) as tracker:
        assert tracker.register(tiny_bundle.folder) == "1"
    with pytest.MonkeyPatch.context() as patch:
        uri = f"sqlite:///{runs / 'mlflow.db'}"
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture(scope="module")
def model(uri: str) -> Any:
    return mlflow.pyfunc.load_model(MODEL)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Any) -> list[dict[str, Any]]:
    """Return what the searcher of the service finds for the first image and a text."""
    searcher = Searcher(bundle.load(tiny_bundle.folder))
    [found] = searcher.search([Query(tiny_bundle.images[0], "is blue", top_k=4)])
    return [{"image_id": result.image_id, "score": result.score} for result in found]


@pytest.mark.parametrize("given", ["path", "URL", "base64", "lines", "data", "bytes", "image_id"])
def test_an_image_is_given_in_any_way(
    model: Any, tiny_bundle: Any, expected: list[dict[str, Any]], given: str
) -> None:
    path = tiny_bundle.folder.parent / "image-0.png"
    content = path.read_bytes()
    encoded = base64.b64encode(content).decode()
    handler = partial(SimpleHTTPRequestHandler, directory=str(path.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    row = {
        "path": {"image": str(path)},
        "URL": {"image": f"http://127.0.0.1:{server.server_port}/{path.name}"},
        "base64": {"image": encoded},
        "lines": {"image": base64.encodebytes(content).decode()},  # as MIME has it
        "data": {"image": f"data:image/png;base64,{encoded}"},
        "bytes": {"image": content},
        "image_id": {"image_id": "image-0"},
    }[given]
    found = model.predict(pd.DataFrame([row | {"text": "is blue", "top_k": 4}]))
    server.shutdown()
    server.server_close()
    [results] = found["results"]
    assert [one["image_id"] for one in results] == [one["image_id"] for one in expected]
    near = 1e-6 if given == "image_id" else 0.0
    for one, other in zip(results, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=0, abs=near)


def test_rows_may_lack_what_others_have(model: Any) -> None:
    rows = [{"text": "is blue"}, {"image_id": "image-3", "top_k": 2}, {"image_id": "image-3"}]
    found = model.predict(pd.DataFrame(rows))["results"]
    assert [len(own) for own in found] == [10, 2, 10]
    assert found[1] == found[2][:2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "no such file.png"}, "neither a file here nor base64"),
        ({"image": base64.b64encode(b"no image").decode()}, "not an image"),
        ({"image": 7}, "neither a file here nor base64"),
        ({"image": [[1, 2], [3, 4]]}, "neither a file here nor base64"),
        ({"image_id": "image-99"}, "no such image"),
        ({"text": " "}, "neither an image nor a text"),
        ({"text": "is blue", "top_k": 0}, "too small"),
        ({"text": "is blue", "top_k": "many"}, "not a whole number"),
    ],
)
def test_what_cannot_be_asked_is_told(model: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        model.predict(pd.DataFrame([row]))


def test_the_model_says_what_it_takes_gives_and_needs(uri: str) -> None:
    info = mlflow.models.get_model_info(MODEL)
    assert info.signature is not None
    assert info.signature.inputs.input_names() == ["image", "image_id", "text", "top_k"]
    assert info.signature.outputs.input_names() == ["results"]
    folder = Path(mlflow.artifacts.download_artifacts(MODEL))
    pinned = (folder / "requirements.txt").read_text().split()
    assert pinned == mlflow_model.requirements()
    assert f"torch=={metadata.version('torch').partition('+')[0]}" in pinned
    assert not list(folder.rglob("*.pkl"))
    loader = Path(*mlflow_model.__name__.split(".")).with_suffix(".py")
    assert (folder / "code" / loader).is_file()
    assert json.loads((folder / "input_example.json").read_text())


def test_a_version_that_is_a_bundle_alone_as_before_is_fetched_as_it_is(
    uri: str, tiny_bundle: Any, tmp_path: Path
) -> None:
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.create_registered_model("before")
    client.create_model_version("before", str(tiny_bundle.folder))
    folder = registry.fetch("models:/before/1", str(tmp_path))
    assert bundle.verify(folder) == bundle.verify(tiny_bundle.folder)


PINNED = """
# A process in which nothing is installed but raycd's checkout, if it is on the path, and what the
# requirements of a model install.
import json, re, sys
from importlib import metadata
from importlib.machinery import PathFinder

def plain(name):
    return re.sub("[-_.]+", "-", name).lower()

installed, todo = {"raycd"}, json.loads(sys.argv[1])
while todo:
    name = plain(todo.pop())
    if name not in installed:
        installed.add(name)
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        todo += [re.match("[A-Za-z0-9_.-]+", one)[0] for one in asked if "extra ==" not in one]
owners = metadata.packages_distributions()

class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        of = {plain(owner) for owner in owners.get(name.partition(".")[0], [])}
        return super().find_spec(name, path, target) if not of or of & installed else None

sys.meta_path = [Installed if one is PathFinder else one for one in sys.meta_path]
"""


def run_pinned(script: str, *arguments: str, cwd: Path, path: str = "") -> str:
    """Return what a script prints where only REQUIREMENTS are installed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    names = json.dumps(mlflow_model.REQUIREMENTS)
    done = subprocess.run(
        [sys.executable, "-c", PINNED + script, names, *arguments],
        cwd=cwd,
        env=environment | ({"PYTHONPATH": path} if path else {}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_the_requirements_are_all_that_the_source_of_a_model_imports(tmp_path: Path) -> None:
    script = """
import raycd.runtime.record.mlflow_model
from importlib.util import find_spec
print([name for name in ("ray", "torch", "fastapi_offline") if find_spec(name)])
"""
    checkout = str(Path(raycd.__file__).parents[1])
    assert run_pinned(script, cwd=tmp_path, path=checkout) == "['torch']"


ALONE = """
import mlflow
found = mlflow.pyfunc.load_model(sys.argv[2]).predict(
    {"image": [sys.argv[3]], "text": ["is blue"], "top_k": [4]})
import raycd
print(json.dumps({"raycd": raycd.__file__, "found": found["results"][0]}))
"""


@pytest.mark.slow
def test_another_process_loads_it_with_its_requirements_and_no_installed_raycd(
    uri: str, tiny_bundle: Any, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    image = tiny_bundle.folder.parent / "image-0.png"
    said = json.loads(run_pinned(ALONE, MODEL, str(image), cwd=tmp_path))
    assert "/code/raycd/" in said["raycd"]
    assert [one["image_id"] for one in said["found"]] == [one["image_id"] for one in expected]


@pytest.mark.slow
def test_mlflow_serves_it(
    uri: str, tiny_bundle: Any, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    port = free_port()
    command = ["models", "serve", "-m", MODEL, "--env-manager", "local", "-p", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(url), process, 180)
        encoded = base64.b64encode((tiny_bundle.folder.parent / "image-0.png").read_bytes())
        row = {"image": encoded.decode(), "text": "is blue", "top_k": 4}
        answer = httpx.post(f"{url}/invocations", json={"dataframe_records": [row]}, timeout=60)
        assert answer.status_code == 200, answer.text
        [found] = answer.json()["predictions"]
        assert [one["image_id"] for one in found["results"]] == [
            one["image_id"] for one in expected
        ]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ping").status_code == 200
    except httpx.TransportError:
        return False
