"""What this version does otherwise than an earlier one, for the runs alone that it changes.

A stage's `version` (pipeline.py) does a stage again in every run. What is said here is a part of
the fingerprint only where the result is another one: all other runs stay done.
"""

from __future__ import annotations

from collections.abc import Sequence

from raycd.config import Config
from raycd.data.schema import Dataset
from raycd.model import fusion


def changes(stage: str, config: Config, dataset: Dataset) -> list[str]:
    """Return what the stage now does otherwise with this data set and these settings."""
    found = []
    if stage == "stage1" and _has(dataset, "further_targets", ["train"]):
        found.append("an epoch draws one of the right targets")
    held_out = config.stage1.select_on == "selection" and _by_subset(config.stage1.select_by)
    if stage == "stage1" and held_out and _has(dataset, "subset", ["selection"]):
        found.append("subsets are whole")
    if stage in ("stage2", "evaluate") and fusion.head_class(config.stage2.head).reranks:
        splits: list[str] = ["val"] if stage == "evaluate" else [config.stage2.select_on]
        by_subset = _by_subset(config.stage2.select_by)
        if (stage == "evaluate" or by_subset) and _has(dataset, "subset", splits):
            found.append("subsets are re-ranked")
    return found


def _by_subset(select_by: Sequence[str]) -> bool:
    return any(name.startswith("recall_subset") for name in select_by)


def _has(dataset: Dataset, column: str, splits: Sequence[str]) -> bool:
    """Tell whether a triplet of these splits has something in a column."""
    return any(value for s in splits for value in dataset.triplets_of(s)[column].to_pylist())
