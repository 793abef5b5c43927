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
from urllib.parse import unquote, urlsplit

from raycd import progress
from raycd.config import TrackingConfig
from raycd.errors import ConfigError, RaycdError, TrackingError
from raycd.redact import without_passwords

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
CALLS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
UPLOADS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}  # a large bundle may take its time
LOST = "see that MLflow can be reached, then start the same command again: it goes on"
_START = "check --tracking.uri and that its server runs; --tracking.enabled false does without a record"


class Store:
    """An MLflow tracking store and registry that has answered once.

    Args:
        config: Its URI; empty means an SQLite file in `runs`.
        runs: Folder or URI that holds the runs.

    Raises:
        ConfigError: No URI is given and `runs` is no local folder.
        TrackingError: The URI is malformed, does not answer, cannot be written or holds another version's tables.
    """

    def __init__(self, config: TrackingConfig, runs: str | Path) -> None:
        folder = _local(runs)
        if not config.uri and folder is None:
            raise ConfigError(
                "the MLflow record has no place",
                got=f"runs {without_passwords(str(runs))}, which is no local folder, and an empty tracking.uri",
                expected="a tracking URI",
                do="set --tracking.uri (e.g. http://host:5000), or --tracking.enabled false",
            )
        self.uri = config.uri or f"sqlite:///{folder / 'mlflow.db' if folder else ''}"
        self._root = f"{(folder / 'mlartifacts').as_uri() if folder else str(runs).rstrip('/') + '/mlartifacts'}"
        database = self._check()
        self._quieten()
        with self.guard("the MLflow record cannot be reached", do=_START, limits=PROBE), _alone(database):
            from mlflow import MlflowClient

            self.client: MlflowClient = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            self.client.search_experiments(max_results=1)

    def experiment(self, name: str) -> str:
        """The id of an experiment, created where it is absent. A server chooses the place of artifacts itself."""
        served = urlsplit(self.uri).scheme in ("http", "https", "databricks") or self.uri == "databricks"
        with self.guard(
            f"the MLflow experiment {name} cannot be used",
            do="choose another --tracking.experiment, or restore it with `mlflow experiments restore`",
        ):
            found = self.client.get_experiment_by_name(name)
            if found is None:
                return str(self.client.create_experiment(name, artifact_location=None if served else self._root))
            if found.lifecycle_stage == "deleted":
                raise ValueError(f"experiment {found.experiment_id} is deleted")
            if not served and found.artifact_location != self._root:
                progress.say(f"note: artifacts of the MLflow experiment {name} go to {found.artifact_location}")
            return str(found.experiment_id)

    @contextlib.contextmanager
    def guard(self, what: str, *, do: str = "", limits: Mapping[str, str] = CALLS) -> Iterator[None]:
        """Turn what MLflow raises into a `TrackingError`, after seconds instead of MLflow's own minutes."""
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
        """What can be said without MLflow. Returns the folder of an SQLite file, created where it is absent."""
        try:
            parts = urlsplit(self.uri)
            whole = parts.scheme not in ("http", "https") or (parts.hostname and parts.port != 0)
        except ValueError:  # an unclosed [, a port that is no number
            whole = False
        if not whole:
            raise self._malformed("a server's address like http://127.0.0.1:5000")
        if parts.scheme != "sqlite":
            return None
        if not self.uri.startswith("sqlite:///") or self.uri == "sqlite:///":
            raise self._malformed("a file like sqlite:///runs/mlflow.db, or sqlite:////absolute/mlflow.db")
        file = Path(unquote(self.uri.removeprefix("sqlite:///").partition("?")[0]))
        with self.guard(f"the MLflow database {file} cannot be written", do="choose another --tracking.uri or --runs"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(file, timeout=20)) as database:
                database.execute("BEGIN IMMEDIATE")
                database.rollback()
        return file.parent

    def _malformed(self, expected: str) -> TrackingError:
        return TrackingError(
            "tracking.uri is malformed", got=without_passwords(self.uri), expected=expected, do="mend --tracking.uri"
        )

    @staticmethod
    def _quieten() -> None:
        """No usage statistics, no lines about tables made or runs ended. Has to precede MLflow's import."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        # It prints the whole traceback of a database error and then raises it: `guard` says it once.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _local(runs: str | Path) -> Path | None:
    """The absolute folder, or None for the URI of another place."""
    text = str(runs)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path)).absolute()
    return None if "://" in text else Path(text).absolute()


@contextlib.contextmanager
def limited(limits: Mapping[str, str]) -> Iterator[None]:
    """Retries and timeouts of MLflow's calls, which it reads from the environment; those that the user has set stay."""
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
