"""Bundles of MLflow's registry: `models:/<name>/<version>` or `models:/<name>@<alias>` becomes a folder.

Where the registry is says MLFLOW_TRACKING_URI (or MLFLOW_REGISTRY_URI), as for every program that uses MLflow.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from raycd.durable import replacing
from raycd.errors import TrackingError
from raycd.redact import without_passwords
from raycd.runtime.mlflow_store import CALLS, limited

CACHE = "~/.cache/raycd/bundles"

_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>[0-9]+)|@(?P<alias>[^/@]+))")


def fetch(uri: str, cache: str = CACHE) -> Path:
    """The folder of a registered bundle, downloaded once a version. It is not verified: `bundle.load` does that.

    Raises TrackingError where the URI is malformed, the registry does not answer or has no such version.
    """
    import mlflow

    match = _MODEL.fullmatch(uri)
    if match is None:
        raise TrackingError(
            "the bundle's address is malformed", got=uri, expected="models:/<name>/<version> or models:/<name>@<alias>"
        )
    client = mlflow.MlflowClient()
    try:
        with limited(CALLS):
            if match["alias"]:
                version = client.get_model_version_by_alias(match["name"], match["alias"])
            else:
                version = client.get_model_version(match["name"], match["version"])
            known = f"{version.version}-{version.creation_timestamp}"  # another registry counts from 1, too
            folder = Path(cache).expanduser() / quote(version.name, safe="") / known
            if not folder.exists():
                with replacing(folder) as fresh:
                    _download(str(version.source), fresh)
    except Exception as error:  # whatever a store uses: MlflowException, requests, SQLAlchemy, OSError, boto3
        raise TrackingError(
            f"{uri} cannot be fetched",
            got=without_passwords(f"{type(error).__name__}: {error}"),
            expected=f"an answer of {without_passwords(mlflow.get_registry_uri())}",
            do="check MLFLOW_TRACKING_URI, the model's name and its alias or version",
        ) from error
    return folder


def _download(source: str, folder: Path) -> None:
    """The files of an artifact folder, directly in `folder`."""
    import mlflow

    inside = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder)))
    if inside != folder:
        for path in inside.iterdir():
            path.rename(folder / path.name)
        inside.rmdir()
