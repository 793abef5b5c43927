"""The MLflow record: a run for each pipeline, a child run for each stage, the bundle as a model.

    with Tracker.open(config, runs_dir, run_id=earlier) as tracker:
        with tracker.stage("stage1") as stage:
            stage.log_epochs([{"epoch": 1, "loss": 0.4, "recall@10": 0.61}])
        tracker.log_results(metrics)
        tracker.log_artifact("runs/demo/report.html")
        tracker.register("runs/demo/bundle")

A run ends as FINISHED, FAILED (an exception) or KILLED (Ctrl-C). MLflow does not allow "@" in a
metric's name: "recall@10" is "recall_at_10" there. With tracking.enabled false every call does
nothing and MLflow is not imported.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycd import __version__, scratch
from raycd.config import Config, RegistryConfig, flatten
from raycd.data.folder import is_local
from raycd.data.schema import Dataset
from raycd.evaluate import Metric
from raycd.redact import without_passwords
from raycd.runtime.record.mlflow_run import MlflowRun, milliseconds
from raycd.runtime.record.mlflow_store import (
    BUNDLE,
    DATABASE,
    MlflowStore,
    database_uri,
    local_folder,
    unless,
)

_LONGEST = 6000  # characters of a parameter


class Tracker(MlflowRun):
    """The run of a whole pipeline.

    Attributes:
        run_id: What a continued pipeline gives to `open`; empty where tracking is disabled.
    """

    def __init__(
        self,
        store: MlflowStore | None,
        run_id: str,
        experiment: str,
        model: str,
        params: Mapping[str, str],
    ) -> None:
        super().__init__(store, run_id)
        self._params = params
        self._experiment = experiment
        self._model = model
        self._logged = ""  # digest of the data set

    @classmethod
    def open(
        cls,
        config: Config,
        runs_dir: str | Path,
        *,
        run_id: str = "",
        name: str = "",
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> Tracker:
        """Connect to MLflow, and start a run or continue the run `run_id`.

        A new run starts, too, where that run was deleted or has other parameters: those of an
        MLflow run cannot change, and `mlflow ui` compares runs by them.

        Args:
            config: Its settings are the run's parameters.
            runs_dir: Folder or URI of all runs, which by default has mlflow.db and mlartifacts/.
            run_id: The `run_id` of the pipeline that is continued.
            name: Name of the run; by default the configuration's.
            more: Parameters beside the configuration.

        Raises:
            ConfigError: runs_dir is remote and tracking.uri empty.
            TrackingError: MLflow cannot be reached or written.
        """
        if not config.tracking.enabled:
            return cls(None, "", "", "", {})
        store = MlflowStore(config.tracking, runs_dir)
        experiment = store.experiment(config.tracking.experiment)
        store.check_model(config.tracking.model)
        params = {**_params(config), **more}
        with store.translate_errors("the MLflow run cannot be started"):
            if not run_id or not _continues(store, run_id, params):
                run_id = _start(store, experiment, config, params, before=run_id, name=name)
            else:
                store.client.update_run(run_id, status="RUNNING")
        return cls(store, run_id, experiment, config.tracking.model, params)

    def log_dataset(self, dataset: Dataset, digest: str, config: Config) -> None:
        """Log the data set of the run, once: its name, digest, source and counts.

        Args:
            digest: Hash of its content.
        """
        if self._store is None or digest == self._logged:
            return
        from mlflow.entities import Dataset as Logged
        from mlflow.entities import DatasetInput, InputTag

        root = without_passwords(config.data.root)
        splits = dataset.triplets["split"].value_counts().to_pylist()
        counts = {"images": len(dataset.images), "gallery": len(dataset.gallery)}
        counts |= {f"triplets {entry['values']}": entry["counts"] for entry in splits}
        logged = Logged(
            *(config.data.format, digest[:36], "local" if is_local(root) else "uri"),
            *(json.dumps({"uri": root}), None, json.dumps(counts)),
        )
        with self._store.translate_errors("the data set cannot be logged"):
            tags = [InputTag("mlflow.data.context", "training")]
            self._store.client.log_inputs(self.run_id, [DatasetInput(logged, tags)])
        self._logged = digest

    def stage(self, name: str, fingerprint: str = "") -> MlflowRun:
        """Start the child run of a stage, or continue that of the same stage that did not end.

        A stage that is done again, with another `fingerprint` or after it was finished, gets
        another child run.
        """
        tags = {"raycd.stage": name, "raycd.fingerprint": fingerprint}
        if fingerprint and self._store is not None:
            with self._store.translate_errors(f"the MLflow run of {name} cannot be continued"):
                of = {"mlflow.parentRunId": self.run_id, **tags}
                wanted = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in of.items())
                for run in self._store.client.search_runs([self._experiment], wanted):
                    if run.info.status != "FINISHED":
                        self._store.client.update_run(run.info.run_id, status="RUNNING")
                        return MlflowRun(self._store, run.info.run_id, continued=True)
        return self.child(name, self._params, tags)

    def child(
        self,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        *,
        began: float | None = None,
    ) -> MlflowRun:
        """Start a child run with its own parameters, now or at `began` (seconds of the epoch)."""
        if self._store is None:
            return MlflowRun(None, "")
        with self._store.translate_errors(f"the MLflow run of {name} cannot be started"):
            run = self._store.client.create_run(
                self._experiment,
                run_name=name,
                start_time=milliseconds(began),
                tags={"mlflow.parentRunId": self.run_id, "raycd.version": __version__, **tags},
            )
            _log_params(
                self._store, run.info.run_id, {key: str(value) for key, value in params.items()}
            )
        return MlflowRun(self._store, run.info.run_id)

    def drop_unfinished(self) -> None:
        """Delete children in status RUNNING: their process was killed while they were written."""
        if self._store is None:
            return
        running = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'"
        with self._store.translate_errors("unfinished MLflow runs cannot be removed"):
            for run in self._store.client.search_runs([self._experiment], running):
                self._store.client.delete_run(run.info.run_id)

    def log_results(self, metrics: Mapping[str, Any]) -> None:
        """Log metrics.json: clip_cd/average/recall_at_10, counts/queries/dress, seconds/stage1."""
        variants = metrics.get("variants") or {}
        rest = {name: metrics[name] for name in ("counts", "seconds") if metrics.get(name)}
        self.log_metrics({**variants, **rest})

    def register(
        self, bundle: str | Path, fingerprint: str = "", answers: pa.Table | None = None
    ) -> str | None:
        """Copy the bundle's folder to the artifacts, as a version of the registered model.

        MLflow itself loads it, too: see `raycd.runtime.record.mlflow_model`.

        Args:
            fingerprint: Any string that tells two bundles apart; registered once for each run.
            answers: What later versions are compared with (`raycd.compare.champion`).

        Returns:
            The version: `mlflow.artifacts.download_artifacts("models:/<model>/<version>")` fetches
            the model, with the bundle in data/bundle, where MLFLOW_TRACKING_URI is set (MLflow 3.17
            ignores that function's own `tracking_uri` here).
        """
        if self._store is None:
            return None
        from raycd.runtime.record import mlflow_model, registry

        client = self._store.client
        with self._store.translate_errors(
            f"the bundle could not be registered as a version of {self._model}"
        ):
            create = partial(client.create_registered_model, self._model)
            unless(create, "RESOURCE_ALREADY_EXISTS")
            versions = [
                version
                for version in client.search_model_versions(f"run_id = '{self.run_id}'")
                if version.name == self._model
            ]
            for version in versions:
                if fingerprint and version.tags.get("raycd.bundle") == fingerprint:
                    return str(version.version)
            folder = _new_folder([one.path for one in client.list_artifacts(self.run_id)])
            with scratch.folder() as made:
                mlflow_model.write(made / "model")
                if answers is not None:
                    pq.write_table(answers, made / "model" / registry.ANSWERS)
                self.log_artifact(made / "model", folder)
            self.log_artifact(bundle, f"{folder}/{BUNDLE}")
            source = f"{client.get_run(self.run_id).info.artifact_uri}/{folder}"
            tags = {"raycd.bundle": fingerprint} if fingerprint else None
            version = client.create_model_version(
                self._model, source, run_id=self.run_id, tags=tags
            )
            return str(version.version)

    def give_alias(
        self, version: str, answers: pa.Table, settings: RegistryConfig, metric: Metric
    ) -> str:
        """Give a registered version an alias if it is better than the champion; say what was done.

        Args:
            answers: Its own.
        """
        if self._store is None:
            return ""
        from raycd.runtime.record import registry

        with self._store.translate_errors(f"the alias {settings.alias} could not be set"):
            client = self._store.client
            return registry.give_alias(client, self._model, version, answers, settings, metric)


def how_to_see(config: Config) -> str:
    """Return the command or the address that shows the record, or that there is none."""
    if not config.tracking.enabled:
        return "no record is kept"
    uri = config.tracking.uri
    if not uri:
        folder = local_folder(config.runs)
        assert folder is not None, "the record of runs on a store has a URI"
        near = folder.is_relative_to(Path.cwd())
        uri = database_uri(Path(os.path.relpath(folder) if near else folder) / DATABASE)
    if uri.startswith(("http://", "https://")):
        return f"open {without_passwords(uri)}"
    return f"mlflow ui --backend-store-uri {shlex.quote(without_passwords(uri))}"


def _start(
    store: MlflowStore,
    experiment: str,
    config: Config,
    params: Mapping[str, str],
    before: str,
    name: str,
) -> str:
    """Start a run with its tags and parameters; `before` is the run that it does not continue."""
    tags = {
        "raycd.preset": config.preset,
        "raycd.protocol": config.evaluate.protocol,
        "raycd.version": __version__,
        "raycd.after": before,
        **_commit(),
    }
    run_name = name or config.name or config.preset or None
    run = store.client.create_run(
        experiment, run_name=run_name, tags={k: v for k, v in tags.items() if v}
    )
    _log_params(store, run.info.run_id, params)
    return str(run.info.run_id)


def _log_params(store: MlflowStore, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    store.client.log_batch(run_id, params=[Param(name, own) for name, own in params.items()])


def _continues(store: MlflowStore, run_id: str, params: Mapping[str, str]) -> bool:
    """Return whether the run exists and has exactly these parameters."""
    run = unless(lambda: store.client.get_run(run_id), "RESOURCE_DOES_NOT_EXIST")
    if run is None or run.info.lifecycle_stage != "active":
        return False
    return dict(run.data.params) == dict(params)


def _params(config: Config) -> dict[str, str]:
    return {
        name: without_passwords(str(value))[:_LONGEST] for name, value in flatten(config).items()
    }


@cache
def _commit() -> Mapping[str, str]:
    """Return tags of this checkout's commit and of changes to it; none outside of a checkout.

    A wheel that was installed into some repository is none of its files.
    """
    own = Path(__file__)
    questions = (
        ["ls-files", "--error-unmatch", own.name],
        ["rev-parse", "HEAD"],
        ["status", "--porcelain", "-uno"],
    )
    try:
        _, head, changed = (
            subprocess.run(
                ["git", "-C", str(own.parent), *what],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            ).stdout.strip()
            for what in questions
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    tags = {"mlflow.source.git.commit": head}
    return tags | {"raycd.uncommitted": "true"} if changed else tags


def _new_folder(names: Sequence[str]) -> str:
    """Return bundle, bundle-2, ...: one after all that are among the run's artifacts.

    The files of an earlier version stay as they are, also where another one has been deleted.
    """
    found = [match for name in names if (match := re.fullmatch(r"bundle(?:-(\d+))?", name))]
    last = max((int(match[1] or 1) for match in found), default=0)
    return f"bundle-{last + 1}" if last else "bundle"
