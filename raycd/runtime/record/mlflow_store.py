"""The MLflow store: where the record is, whether it answers, its errors as TrackingError.

MLflow takes two seconds to import, so nothing here imports it before a record is wanted.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from fsspec.implementations.local import LocalFileSystem
from sqlalchemy import URL, make_url

from raycd import progress
from raycd.config import TrackingConfig
from raycd.durable import file_lock
from raycd.errors import ConfigError, RaycdError, TrackingError
from raycd.redact import without_passwords
from raycd.run import open_uri
from raycd.runtime import private

if TYPE_CHECKING:
    from mlflow import MlflowClient

Answer = TypeVar("Answer")

DATABASE = "mlflow.db"
BUNDLE = "data/bundle"  # where a bundle lies in its model of the registry
PROBE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
CALLS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
UPLOADS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}  # a large bundle may take its time
LOST = "see that MLflow can be reached, then start the same command again: it goes on"
_ENVIRONMENT = threading.RLock()
_START = (
    "check --tracking.uri and that its server runs; --tracking.enabled false does without a record"
)


class MlflowStore:
    """An MLflow tracking store and registry that has answered once.

    Args:
        config: Its URI; empty means an SQLite file in `runs`.
        runs: Folder or URI that holds the runs.

    Raises:
        ConfigError: No URI is given and `runs` is not a local folder.
        TrackingError: The URI is malformed, does not answer, cannot be written, or has the tables
            of another version of MLflow.
    """

    def __init__(self, config: TrackingConfig, runs: str | Path) -> None:
        folder = local_folder(runs)
        if not config.uri and folder is None:
            raise ConfigError(
                "it is not known where to keep the MLflow record",
                got=f"runs {without_passwords(str(runs))}, which is not a local folder, "
                "and an empty tracking.uri",
                expected="a tracking URI",
                do="set --tracking.uri (e.g. http://host:5000), or --tracking.enabled false",
            )
        self.uri = config.uri or database_uri(folder / DATABASE if folder else Path())
        root = folder.as_uri() if folder else str(runs).rstrip("/")
        self._root = f"{root}/mlartifacts"
        database = self._check()
        self._quiet()
        with (
            self.translate_errors("the MLflow record cannot be reached", do=_START, limits=PROBE),
            # MLflow fails where two processes make the tables of a new file (mlflow issue 19943).
            file_lock(database.parent) if database else nullcontext(),
        ):
            from mlflow import MlflowClient

            self.client: MlflowClient = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            self.client.search_experiments(max_results=1)

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, created where it is absent."""
        schemes = ("http", "https", "databricks")
        served = urlsplit(self.uri).scheme in schemes or self.uri == "databricks"
        root = None if served else self._root  # a server decides itself where artifacts go
        with self.translate_errors(
            f"the MLflow experiment {name} cannot be used",
            do="choose another --tracking.experiment, "
            "or restore it with `mlflow experiments restore`",
        ):
            found = self.client.get_experiment_by_name(name)
            if found is None:
                made = self.client.create_experiment(name, artifact_location=root)
                found = self.client.get_experiment(made)
            elif found.lifecycle_stage == "deleted":
                raise ValueError(f"experiment {found.experiment_id} is deleted")
            elif not served and found.artifact_location != self._root:
                where = found.artifact_location
                progress.say(f"note: artifacts of the MLflow experiment {name} go to {where}")
        self._check_artifacts(found.artifact_location)
        return str(found.experiment_id)

    def check_model(self, name: str) -> None:
        """Refuse a name that MLflow does not accept now, not after the training."""
        with self.translate_errors(
            f"the MLflow model {name} cannot be used", do="choose another --tracking.model"
        ):
            unless(lambda: self.client.get_registered_model(name), "RESOURCE_DOES_NOT_EXIST")

    def _check_artifacts(self, location: str) -> None:
        """Refuse a store of artifacts that cannot be reached now, not after the training."""
        if urlsplit(location).scheme in ("", "file", "mlflow-artifacts"):
            return
        with self.translate_errors(
            f"the artifacts of the MLflow record cannot be kept in {without_passwords(location)}",
            do="check that store's address and credentials, "
            "and that its package is installed (boto3 for s3://)",
        ):
            from mlflow import artifacts

            artifacts.list_artifacts(artifact_uri=location, tracking_uri=self.uri)

    @contextmanager
    def translate_errors(
        self, what: str, *, do: str = "", limits: Mapping[str, str] = CALLS
    ) -> Iterator[None]:
        """Turn what MLflow raises into TrackingError, after seconds instead of MLflow's minutes."""
        try:
            with limited(limits):
                yield
        except RaycdError:
            raise
        # Whatever a store raises: MlflowException, or an error of requests, SQLAlchemy, boto3, ...
        except Exception as error:
            first = without_passwords(str(error)).strip().splitlines() or [""]
            raise TrackingError(
                what,
                got=f"{type(error).__name__}: {first[0][:300]}",
                expected=f"an answer from {without_passwords(self.uri)}",
                do=do or LOST,
            ) from error

    def _check(self) -> Path | None:
        """Check what can be checked without MLflow; return the SQLite file, if it is one."""
        try:
            parts = urlsplit(self.uri)
            valid = parts.scheme not in ("http", "https") or (parts.hostname and parts.port != 0)
        except ValueError:  # an unclosed [, a port that is not a number
            valid = False
        if not valid:
            raise self._malformed("a server's address like http://127.0.0.1:5000")
        if parts.scheme.partition("+")[0] != "sqlite":
            return None
        name = self.uri.partition(":///")[2] and make_url(self.uri).database
        if not name:
            expected = "a file like sqlite:///runs/mlflow.db, or sqlite:////absolute/mlflow.db"
            raise self._malformed(expected)
        file = Path(name)
        with self.translate_errors(
            f"the MLflow database {file} cannot be written",
            do="choose another --tracking.uri or --runs",
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(file, timeout=20)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.rollback()
        return file

    def _malformed(self, expected: str) -> TrackingError:
        return TrackingError(
            "tracking.uri is malformed",
            got=without_passwords(self.uri),
            expected=expected,
            do="fix --tracking.uri",
        )

    @staticmethod
    def _quiet() -> None:
        """Turn off usage statistics and logs of made tables and ended runs, before the import."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        private.quiet_mlflow()


def local_folder(runs: str | Path) -> Path | None:
    """Return the absolute folder of runs; None for the URI of a store."""
    file_system, path = open_uri(str(runs))
    return Path(path) if isinstance(file_system, LocalFileSystem) else None


def database_uri(file: Path) -> str:
    """Return the tracking URI of an SQLite file, whatever characters its path has."""
    plain, quoted = f"sqlite:///{file}", URL.create("sqlite", database=str(file)).render_as_string()
    if quoted == plain:
        return plain
    # For sqlite:// MLflow makes the database's folder, by its quoted name (pull request 19205).
    return quoted.replace("sqlite", "sqlite+pysqlite", 1)


def unless(ask: Callable[[], Answer], *codes: str) -> Answer | None:
    """Return what `ask()` does, and None where MLflow refuses it with one of these codes."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code in codes:
            return None
        raise


@contextmanager
def limited(limits: Mapping[str, str]) -> Iterator[None]:
    """Set retries and timeouts of MLflow's calls, by its environment, but for the user's own.

    One thread at a time is inside of the block, since the environment is that of all.
    """
    with _ENVIRONMENT:
        missing = [name for name in limits if name not in os.environ]
        os.environ.update({name: limits[name] for name in missing})
        try:
            yield
        finally:
            for name in missing:
                os.environ.pop(name, None)
