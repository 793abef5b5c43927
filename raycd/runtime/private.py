"""Private interfaces of Ray and MLflow that raycd cannot do without, all in this file.

They may change with any release: after an upgrade of Ray (2.60) or MLflow (3.17), check this file.
Each says why it is needed and what would make it superfluous.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any


def metrics_port(port: int | None) -> dict[str, Any]:
    """Return the argument of ray.init for the port of the node's metrics.

    `ray start` has a public option for it; superfluous where ray.init has one, too.
    """
    return {"_metrics_export_port": port}


def reread_environment() -> None:
    """Have Ray read the environment again: its C++ and some modules read it at their import.

    Superfluous where ray.init takes the token, the log level and the loopback address as arguments.
    """
    from ray import _raylet
    from ray._private import ray_constants

    raylet: Any = _raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
    named = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    ray_constants.ENABLE_RAY_CLUSTER = os.environ.get(named) != "0"


@contextmanager
def patient_start(seconds: float) -> Iterator[None]:
    """Have ray.init wait `seconds` longer for its new node to register, inside of the block.

    Its 30 s are a number in the code of `Node`, which asks through this function (ray issues 62883
    and 65983). Superfluous where they become a setting.
    """
    from ray._private import services

    ask: Callable[..., object] = services.get_node

    def get_node(*arguments: object) -> object:
        until = time.monotonic() + seconds
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    services.get_node = get_node
    try:
        yield
    finally:
        services.get_node = ask


def free_resources() -> list[dict[str, float]]:
    """Return what each machine has left beside what runs now.

    `ray.available_resources` has the sum of all machines alone, and a worker is on one. Superfluous
    where that is public (it is marked so, in a private module).
    """
    from ray._private import state

    ask: Callable[[], dict[str, dict[str, float]]] = state.available_resources_per_node
    return list(ask().values())


def trainer_class(*, alone: bool) -> type[Any]:
    """Return a TorchTrainer that leaves Ctrl-C to its caller, and starts nothing for Ray Data.

    Ray Train's own handler (ray pull requests 53600 and 54188) aborts the run and then ends the
    process with code 1, whatever surrounds `fit`. Public callbacks run in the controller, which
    does not get the signal. Superfluous where `fit` raises KeyboardInterrupt after the abort.

    Without datasets, too, an actor that shards them starts before the workers, in two seconds of
    a CPU. Superfluous where Ray Train starts it for datasets alone. Where this process is `alone`
    in its Ray, which ends with it, none is started either that gives its resources back then.
    """
    import ray
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        _controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self._controller = controller

        def _create_default_callbacks(self) -> list[Any]:
            made = super()._create_default_callbacks()  # type: ignore[misc]  # Ray's own
            left_out = {"DatasetsCallback", *(["PlacementGroupCleanerCallback"] if alone else [])}
            return [one for one in made if type(one).__name__ not in left_out]

        def fit(self) -> Any:
            """Train; on Ctrl-C stop the workers first."""
            try:
                return super().fit()
            except KeyboardInterrupt:
                if self._controller is not None:
                    with suppress(Exception):  # aborting ends the actor, which counts as an error
                        ray.get(self._controller.abort.remote(), timeout=10)
                raise

    return Trainer


def cause_of_death(error: BaseException) -> BaseException:
    """Return what Ray Core said of a worker of Ray Train that has died, else the error itself.

    `UserCallback.after_exception` gets an internal error, whose message is "A worker health check
    failed." Superfluous where that message says why.
    """
    found = getattr(error, "health_check_failure", None)
    return found if isinstance(found, BaseException) else error


def found_no_room(error: BaseException) -> bool:
    """Tell whether Ray Train has waited for room for its workers as often as it was told to.

    Superfluous where that error is public, or where a fixed number follows what the cluster has.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    cause = getattr(error, "controller_failure", None)
    return isinstance(cause, WorkerGroupStartupTimeoutError)


def failed_to_start(error: BaseException) -> bool:
    """Tell whether workers of Ray Train have died as they started, as often as it was told to try.

    It counts them over a whole training. Superfluous where it counts those in a row.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    cause = getattr(error, "controller_failure", None)
    return isinstance(cause, WorkerGroupStartupFailedError)


def is_failed_start(error: BaseException) -> bool:
    """Tell Ray Train's errors of workers that cannot start, or that a cluster never has room for.

    Superfluous where they are public.
    """
    from ray.train.v2._internal import exceptions

    kinds = exceptions.WorkerGroupStartupFailedError, exceptions.InsufficientClusterResourcesError
    return isinstance(error, kinds)


def quiet_ray_data() -> None:
    """Silence Ray Data where it repeats an error that is raised as well, and its progress."""
    loggers: Mapping[str, int] = {
        "ray.data": logging.WARNING,
        "ray.data._internal.progress": logging.ERROR,  # it warns that progress bars are off
        "ray.data.exceptions": logging.CRITICAL,
        "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    }
    for name, level in loggers.items():
        logging.getLogger(name).setLevel(level)


def quiet_mlflow() -> None:
    """Silence MLflow's printed traceback of a database error, which it raises as well."""
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
