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

import pyarrow as pa
import pyarrow.parquet as pq

from raycd import scratch
from raycd.bundle.cache import CACHE, keep
from raycd.compare.champion import Verdict, judge
from raycd.config import RegistryConfig
from raycd.errors import TrackingError
from raycd.evaluate import Metric
from raycd.redact import without_passwords
from raycd.runtime.record.mlflow_store import BUNDLE, CALLS, limited, unless

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

ANSWERS = "answers.parquet"
"""The file of a registered model with what `raycd.compare.champion` compares."""
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
        key = f"{quote(version.name, safe='')}/{name}"
        return keep(key, partial(_download, str(version.source)), cache)


def pinned(uri: str) -> str:
    """Return the same bundle as models:/<name>/<version>, wherever its alias is moved.

    Raises:
        TrackingError: As `fetch`.
    """
    with _translate_errors(uri):
        version = _version(uri)
    return f"models:/{version.name}/{version.version}"


def give_alias(
    client: MlflowClient,
    model: str,
    version: str,
    answers: pa.Table,
    settings: RegistryConfig,
    metric: Metric,
) -> str:
    """Give a version the alias `settings.alias` if it is better than the champion.

    Where no version is the champion yet, there is nothing to be better than. Returns what was done
    and why, for a person. Raises MLflow's own errors.
    """
    champion = _champion(client, model, settings.champion)
    if champion is None:
        verdict = Verdict(True, f"no version is {settings.champion} yet")
    elif str(champion.version) == version:
        return f"alias {settings.alias}: version {version} of {model} is the {settings.champion}"
    else:
        verdict = _verdict(client, champion, answers, metric)
    if verdict.is_better:
        client.set_registered_model_alias(model, settings.alias, version)
    done = "is" if verdict.is_better else "is not"
    against = "" if champion is None else f" against version {champion.version}"
    return (
        f"alias {settings.alias} {done} given to version {version} of {model}: "
        f"{verdict.reason}{against}"
    )


def move_alias(uri: str, before: str, run_id: str) -> str:
    """Have an alias name the version that a run has registered last; return that version.

    Args:
        uri: models:/<name>@<alias>.
        before: What `pinned` said when the versions were compared.

    Raises:
        TrackingError: The registry does not answer, has no version of the run, or its alias names
            another version than before: nothing was changed.
    """
    import mlflow

    with _translate_errors(uri):
        match, client = _MODEL.fullmatch(uri), mlflow.MlflowClient()
        assert match is not None, "pinned has read it"
        now = f"models:/{match['name']}/{_version(uri).version}"
        found = client.search_model_versions(f"run_id = '{run_id}'")
        versions = sorted(int(one.version) for one in found if one.name == match["name"])
        target = versions[-1] if versions else None
        if target is not None and now == before:
            client.set_registered_model_alias(match["name"], match["alias"], str(target))
            return str(target)
    if target is not None and now == f"models:/{match['name']}/{target}":
        return str(target)  # it was moved before this was interrupted
    raise TrackingError(
        f"{uri} was not moved",
        got=f"{now}, and {'no version' if target is None else f'version {target}'} of the new run",
        expected=f"{before}, with which the new version was compared, and a version of the new run",
        do="see that MLFLOW_TRACKING_URI names the record of the training, and compare again",
    )


def _champion(client: MlflowClient, model: str, alias: str) -> ModelVersion | None:
    return unless(
        lambda: client.get_model_version_by_alias(model, alias),
        *("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"),
    )


def _verdict(
    client: MlflowClient, champion: ModelVersion, answers: pa.Table, metric: Metric
) -> Verdict:
    name = PurePosixPath(str(champion.source)).name
    path = f"{name}/{ANSWERS}"
    # Listed first: a store that does not answer is told from one without the file
    if path not in _files(client, champion, name):
        return Verdict(False, "the champion has no answers to compare with (an earlier raycd)")
    with scratch.folder() as folder:
        theirs = pq.read_table(client.download_artifacts(str(champion.run_id), path, str(folder)))
    return judge(answers, theirs, metric)


def _files(client: MlflowClient, version: ModelVersion, folder: str) -> list[str]:
    """Return what is in a folder of the run of a version; nothing where the run is gone."""
    if not version.run_id:
        return []
    ask = partial(client.list_artifacts, str(version.run_id), folder)
    return [str(file.path) for file in unless(ask, "RESOURCE_DOES_NOT_EXIST") or ()]


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
