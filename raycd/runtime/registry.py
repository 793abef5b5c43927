"""Bundles of MLflow's registry: models:/<name>/<version> or models:/<name>@<alias> as a folder.

MLFLOW_TRACKING_URI (or MLFLOW_REGISTRY_URI) names the registry, as for every program with MLflow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote

from raycd.bundle.cache import CACHE, keep
from raycd.errors import TrackingError
from raycd.redact import without_passwords
from raycd.runtime.mlflow_store import BUNDLE, CALLS, limited

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>[0-9]+)|@(?P<alias>[^/@]+))")


def fetch(uri: str, cache: str = CACHE) -> Path:
    """Return the folder of a registered bundle, each version of which is downloaded once.

    It is not verified: `bundle.load` does that.

    Raises:
        TrackingError: The URI is malformed, or the registry does not answer or has no such version.
    """
    with _translate_errors(uri):
        version = _version(uri)
        # With its time: another registry counts its versions from 1, too.
        name = f"{version.version}-{version.creation_timestamp}"
        place = f"{quote(version.name, safe='')}/{name}"
        return keep(place, partial(_download, str(version.source)), cache)


def pinned(uri: str) -> str:
    """Return the same bundle as models:/<name>/<version>, wherever its alias is moved.

    Raises:
        TrackingError: As `fetch`.
    """
    with _translate_errors(uri):
        version = _version(uri)
    return f"models:/{version.name}/{version.version}"


@contextmanager
def _translate_errors(uri: str) -> Iterator[None]:
    """Limit MLflow's calls, and turn what they raise into TrackingError."""
    try:
        with limited(CALLS):
            yield
    except TrackingError:
        raise
    # Whatever a store raises: MlflowException, or an error of requests, SQLAlchemy, boto3, ...
    except Exception as error:
        import mlflow

        raise TrackingError(
            f"{uri} cannot be fetched",
            got=without_passwords(f"{type(error).__name__}: {error}"),
            expected=f"an answer of {without_passwords(mlflow.get_registry_uri())}",
            do="check MLFLOW_TRACKING_URI, the model's name and its alias or version",
        ) from error


def _version(uri: str) -> ModelVersion:
    """Look up a version. Raises TrackingError for a malformed URI, and MLflow's own errors."""
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


def _download(source: str, folder: Path) -> None:
    """Download the bundle of a version, whose model lies at `source`, directly into `folder`."""
    import mlflow

    files = mlflow.artifacts.list_artifacts(artifact_uri=source)
    if any(PurePosixPath(file.path).name == "MLmodel" for file in files):
        source = f"{source.rstrip('/')}/{BUNDLE}"  # else of an earlier raycd: the bundle alone
    inside = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder)))
    if inside != folder:
        for path in inside.iterdir():
            path.rename(folder / path.name)
        inside.rmdir()
