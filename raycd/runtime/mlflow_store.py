"""Reaching MLflow: where the record is, whether it answers, and MLflow's errors as `TrackingError`.

MLflow takes two seconds to import, so nothing here imports it before a record is wanted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fsspec.implementations.local import LocalFileSystem
from sqlalchemy import URL, make_url

from raycd import progress
from raycd.config import TrackingConfig
from raycd.errors import ConfigError, RaycdError, TrackingError
from raycd.redact import without_passwords
from raycd.run import open_place

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
PROBE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
CALLS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
UPLOADS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}  # a large bundle may take its time
LOST = "see that MLflow can be reached, then start the same command again: it goes on"
_START = (
    "check --tracking.uri and that its server runs; --tracking.enabled false does without a record"
)


class Store:
    """An MLflow tracking store and registry that has answered once.

    Args:
        config: Its URI; empty means an SQLite file in `runs`.
        runs: Folder or URI that holds the runs.

    Raises:
        ConfigError: No URI is given and `runs` is no local folder.
        TrackingError: The URI is malformed, does not answer, cannot be written or holds another
            version's tables.
    """

    def __init__(self, config: TrackingConfig, runs: str | Path) -> None:
        folder = local_folder(runs)
        if not config.uri and folder is None:
            raise ConfigError(
                "the MLflow record has no place",
                got=f"runs {without_passwords(str(runs))}, which is no local folder, and an empty tracking.uri",
                expected="a tracking URI",
                do="set --tracking.uri (e.g. http://host:5000), or --tracking.enabled false",
            )
        self.uri = config.uri or database_uri(folder / DATABASE if folder else Path())
        self._root = f"{(folder / 'mlartifacts').as_uri() if folder else str(runs).rstrip('/') + '/mlartifacts'}"
        database = self._check()
        self._quieten()
        with (
            self.guard("the MLflow record cannot be reached", do=_START, limits=PROBE),
            _alone(database),
        ):
            from mlflow import MlflowClient

            self.client: MlflowClient = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            self.client.search_experiments(max_results=1)

    def experiment(self, name: str) -> str:
        """The id of an experiment, created where it is absent. A server chooses the place of
        artifacts itself.
        """
        served = (
            urlsplit(self.uri).scheme in ("http", "https", "databricks") or self.uri == "databricks"
        )
        with self.guard(
            f"the MLflow experiment {name} cannot be used",
            do="choose another --tracking.experiment, or restore it with `mlflow experiments restore`",
        ):
            found = self.client.get_experiment_by_name(name)
            if found is None:
                made = self.client.create_experiment(
                    name, artifact_location=None if served else self._root
                )
                found = self.client.get_experiment(made)
            elif found.lifecycle_stage == "deleted":
                raise ValueError(f"experiment {found.experiment_id} is deleted")
            elif not served and found.artifact_location != self._root:
                progress.say(
                    f"note: artifacts of the MLflow experiment {name} go to {found.artifact_location}"
                )
        self._check_artifacts(found.artifact_location)
        return str(found.experiment_id)

    def check_model(self, name: str) -> None:
        """Refuse now, not after all training, a name that MLflow takes for no model."""
        with self.guard(
            f"the MLflow model {name} cannot be used", do="choose another --tracking.model"
        ):
            from mlflow.exceptions import MlflowException

            try:
                self.client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise

    def _check_artifacts(self, location: str) -> None:
        """Refuse now, not after all training, a store of artifacts that this process cannot reach."""
        if urlsplit(location).scheme in ("", "file", "mlflow-artifacts"):
            return
        with self.guard(
            f"the artifacts of the MLflow record cannot be kept in {without_passwords(location)}",
            do="check that store's address and credentials, and that its package is installed (boto3 for s3://)",
        ):
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            get_artifact_repository(location).list_artifacts()

    @contextlib.contextmanager
    def guard(
        self, what: str, *, do: str = "", limits: Mapping[str, str] = CALLS
    ) -> Iterator[None]:
        """Turn what MLflow raises into a `TrackingError`, after seconds instead of MLflow's own
        minutes.
        """
        try:
            with limited(limits):
                yield
        except RaycdError:
            raise
        except Exception as error:  # MlflowException, requests, SQLAlchemy, OSError, boto3, ...: whatever a store uses
            first = without_passwords(str(error)).strip().splitlines() or [""]
            raise TrackingError(
                what,
                got=f"{type(error).__name__}: {first[0][:300]}",
                expected=f"an answer from {without_passwords(self.uri)}",
                do=do or LOST,
            ) from error

    def _check(self) -> Path | None:
        """What can be said without MLflow. Returns the folder of an SQLite file, created where it
        is absent.
        """
        try:
            parts = urlsplit(self.uri)
            whole = parts.scheme not in ("http", "https") or (parts.hostname and parts.port != 0)
        except ValueError:  # an unclosed [, a port that is no number
            whole = False
        if not whole:
            raise self._malformed("a server's address like http://127.0.0.1:5000")
        if parts.scheme.partition("+")[0] != "sqlite":
            return None
        name = self.uri.partition(":///")[2] and make_url(self.uri).database
        if not name:
            raise self._malformed(
                "a file like sqlite:///runs/mlflow.db, or sqlite:////absolute/mlflow.db"
            )
        file = Path(name)
        with self.guard(
            f"the MLflow database {file} cannot be written",
            do="choose another --tracking.uri or --runs",
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(file, timeout=20)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.rollback()
        return file.parent

    def _malformed(self, expected: str) -> TrackingError:
        return TrackingError(
            "tracking.uri is malformed",
            got=without_passwords(self.uri),
            expected=expected,
            do="mend --tracking.uri",
        )

    @staticmethod
    def _quieten() -> None:
        """No usage statistics, no lines about tables made or runs ended. Has to precede MLflow's
        import.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # It prints the whole traceback of a database error and then raises it: `guard` says it
        # once.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def local_folder(runs: str | Path) -> Path | None:
    """Return the absolute folder where a run's files go, or None for the URI of another place."""
    file_system, path = open_place(str(runs))
    return Path(path) if isinstance(file_system, LocalFileSystem) else None


def database_uri(file: Path) -> str:
    """Return the tracking URI of an SQLite file, whatever characters its path has."""
    plain, quoted = f"sqlite:///{file}", URL.create("sqlite", database=str(file)).render_as_string()
    if quoted == plain:
        return plain
    # Under its short name MLflow makes the folder of the database first, and takes the quoted name
    # for the folder's.
    return quoted.replace("sqlite", "sqlite+pysqlite", 1)


@contextlib.contextmanager
def limited(limits: Mapping[str, str]) -> Iterator[None]:
    """Retries and timeouts of MLflow's calls, which it reads from the environment; those that the
    user has set stay.
    """
    missing = [name for name in limits if name not in os.environ]
    os.environ.update({name: limits[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """One process at a time: MLflow fails where two of them make the tables of one new SQLite file."""
    if folder is None:
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
