"""The arithmetic of a stage that says `precision: auto`: that in which a job has begun it.

Which card answers, or whether one is there, may change between two jobs. A stage that another job
has begun and not ended goes on as it was begun: in another arithmetic it would begin anew.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence

from raycd import progress
from raycd.config import Config
from raycd.model.precision import ARITHMETICS, in_place_of_auto
from raycd.run import UNFINISHED, Run, short_name
from raycd.runtime import precision
from raycd.runtime.stages.fitting import storage_name
from raycd.runtime.train import training
from raycd.runtime.train.checkpoints import Checkpoints


def settled(
    config: Config, run: Run, stage: str, prints: Sequence[str], encoders: Collection[str]
) -> Config:
    """Return the configuration with what a stage computes in wherever it says auto.

    It must be called while connected. Both arithmetics run on all devices, bf16 as autocast.

    Args:
        prints: The stage's fingerprint in each of `ARITHMETICS`.
        encoders: The hashes of the encoders that it may begin with.

    Raises:
        ConfigError: The workers' torch cannot use the GPUs that Ray sees.
    """
    found = precision.settled(config)
    begun = [
        kind
        for kind, own in zip(ARITHMETICS, prints, strict=True)
        if _is_begun(run, stage, own, encoders)
    ]
    if len(begun) != 1:
        return found
    used = in_place_of_auto(config, begun[0])
    if used != found:
        progress.say(f"{stage}: goes on in {begun[0]}, in which it was begun; auto is another now")
    return used


def _is_begun(run: Run, stage: str, own: str, encoders: Collection[str]) -> bool:
    """Return whether there are features or a whole checkpoint of a stage with this fingerprint."""
    if run.names(posixpath.join(UNFINISHED, short_name(stage, own))):
        return True
    folders = {storage_name(stage, own, encoder) for encoder in encoders}
    return any(Checkpoints(run.path(training.STORAGE, name)).names() for name in folders)
