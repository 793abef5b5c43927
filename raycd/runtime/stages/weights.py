"""Hashes of the weights that stages were made with, beside their fingerprints.

A fingerprint chains settings. A stage that is trained a second time has the same one, but, on GPUs
or another machine, not the same weights. So the record of a stage says which weights it was made
with; where the stages before it have others, it is done again. Likewise which images have features,
for what was mined names them by their rows: one that could not be read may be there another time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENTRY = "weights"  # of a record: {"stage1": hash}, of all stages before that leave some
_HASHED = {
    **{"encoder": "encoder", "adapt": "encoder", "stage1": "encoder", "stage2": "head"},
    "embed": "rows",
}
"""Stages that leave weights or rows, and the entry of their records that is the hash."""


def of_inputs(records: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the hashes that the records of a stage's inputs know, by the stage of the weights."""
    found: dict[str, str] = {}
    for stage, record in records.items():
        found |= record.get(ENTRY, {})
        if stage in _HASHED and _HASHED[stage] in record:
            found[stage] = record[_HASHED[stage]]
    return found


def changed(known: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the stages whose weights have another hash now; those not `known` are not compared."""
    return [stage for stage, own in now.items() if known.get(stage, own) != own]


def is_current(record: Mapping[str, Any], fingerprint: str, weights: Mapping[str, str]) -> bool:
    """Tell whether a stage has this fingerprint, and was made with these weights.

    Those that its record does not name, as that of an earlier raycd, are not compared.
    """
    return bool(record["fingerprint"] == fingerprint) and not changed(
        record.get(ENTRY, {}), weights
    )
