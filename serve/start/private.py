"""Private interfaces of Ray Serve, all in this file, each with what would make it unnecessary."""

from __future__ import annotations

from typing import Any

from ray.serve import Deployment


def with_version(deployment: Deployment, version: str, **options: Any) -> Deployment:
    """Return the deployment with options and a version: replicas of the same version stay.

    Without a version, `serve.run` gives every deployment a new one, and replaces all replicas even
    where `user_config` alone differs. `Deployment.options` takes a version only with `_internal`,
    which also leaves out of the record which options the user has set; only config files ask that.

    Unnecessary once `serve.run` compares what it deploys, as `serve deploy` does.
    """
    versioned: Deployment = deployment.options(version=version, _internal=True, **options)
    return versioned
