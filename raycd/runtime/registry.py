"""Bundles of MLflow's registry: `models:/<name>/<version>` or `models:/<name>@<alias>` becomes a
folder.

Where the registry is says MLFLOW_TRACKING_URI (or MLFLOW_REGISTRY_URI), as for every program that
uses MLflow.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from raycd.durable import replacing
from raycd.errors import TrackingError
from raycd.redact import without_passwords
from raycd.runtime.mlflow_store import CALLS, limited

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CACHE = "~/.cache/raycd/bundles"

_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>[0-9]+)|@(?P<alias>[^/@]+))")


def fetch(uri: str, cache: str = CACHE) -> Path:
    """The folder of a registered bundle, downloaded once a version. It is not verified:
    `bundle.load` does that.

    Raises TrackingError where the URI is malformed, the registry does not answer or has no such
    version.
    """
    with _told(uri):
        version = _version(uri)
        known = (
            f"{version.version}-{version.creation_timestamp}"  # another registry counts from 1, too
        )
        folder = Path(cache).expanduser() / quote(version.name, safe="") / known
        if not folder.exists():
            with _alone(folder):
                if (
                    not folder.exists()
                ):  # nobody else has put it there meanwhile, who may be using it by now
                    with replacing(folder) as fresh:
                        _download(str(version.source), fresh)
    return folder


def pinned(uri: str) -> str:
    """The same bundle as `models:/<name>/<version>`, wherever its alias is moved. Raises
    TrackingError.
    """
    with _told(uri):
        version = _version(uri)
    return f"models:/{version.name}/{version.version}"


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """MLflow's calls within limits, and what they raise as TrackingError."""
    try:
        with limited(CALLS):
            yield
    except TrackingError:
        raise
    except (
        Exception
    ) as error:  # whatever a store uses: MlflowException, requests, SQLAlchemy, OSError, boto3
        import mlflow

        raise TrackingError(
            f"{uri} cannot be fetched",
            got=without_passwords(f"{type(error).__name__}: {error}"),
            expected=f"an answer of {without_passwords(mlflow.get_registry_uri())}",
            do="check MLFLOW_TRACKING_URI, the model's name and its alias or version",
        ) from error


def _version(uri: str) -> ModelVersion:
    """What the registry says of it. Raises TrackingError where the URI is malformed, and MLflow's
    own errors.
    """
    import mlflow

    match = _MODEL.fullmatch(uri)
    if match is None:
        raise TrackingError(
            "the bundle's address is malformed",
            got=uri,
            expected="models:/<name>/<version> or models:/<name>@<alias>",
        )
    client = mlflow.MlflowClient()
    if match["alias"]:
        return client.get_model_version_by_alias(match["name"], match["alias"])
    return client.get_model_version(match["name"], match["version"])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time, of all threads and processes, for what is to lie at `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(source: str, folder: Path) -> None:
    """The files of an artifact folder, directly in `folder`."""
    import mlflow

    inside = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder)))
    if inside != folder:
        for path in inside.iterdir():
            path.rename(folder / path.name)
        inside.rmdir()
