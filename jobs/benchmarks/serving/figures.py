"""From samples to figures: rates, quantiles, the steps of a search, refusals and recovery."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jobs.benchmarks.serving.load import OK, REFUSED, LoadResult, Sample

Figures = dict[str, float | str]

STEPS = ("read", "decode", "wait", "encode", "search")
PROMPT_MS = 100  # within which an overloaded service must refuse
RUN, TOLERANCE = 11, 1.25  # recovered: the median of so many answers : the one before the overload


def quantile(values: Sequence[float], share: float) -> float:
    """Return the least value that at least `share` of all do not exceed; NaN of none."""
    return float(np.quantile(values, share, method="inverted_cdf")) if values else math.nan


def speed(seen: LoadResult, begin: float, end: float) -> Figures:
    """Return rate and latency of what was answered from `begin` to `end`, in seconds."""
    inside = [one for one in seen.samples if begin <= one.due + one.ms / 1000 < end]
    ms = [one.ms for one in inside if one.status == OK]
    return {
        "successes/s": len(ms) / (end - begin),
        "p50, ms": quantile(ms, 0.5),
        "p99, ms": quantile(ms, 0.99),
        "failures": len(inside) - len(ms) + seen.errors,
    }


def timings(header: str) -> dict[str, float]:
    """Read Server-Timing: milliseconds of each step, and the size of `batch;desc="8"`."""
    found = {}
    for entry in header.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        if "dur" in values or name == "batch":
            found[name] = float(values.get("dur") or values["desc"].strip('"'))
    return found


def breakdown(samples: Sequence[Sample]) -> Figures:
    """Return mean milliseconds of each step, of HTTP, proxy and client; and sizes of batches."""
    steps = [timings(one.timing) for one in samples if one.status == OK and one.timing]
    if not steps:
        return {}
    mean = {step: statistics.fmean(one.get(step, 0.0) for one in steps) for step in STEPS}
    total = statistics.fmean(one.get("total", 0.0) for one in steps)
    whole = statistics.fmean(one.ms for one in samples if one.status == OK and one.timing)
    figures: Figures = {f"mean {step}, ms": value for step, value in mean.items()}
    figures["mean rest of the service, ms"] = total - sum(mean.values())
    figures["mean outside of the service, ms"] = whole - total
    return figures | batches([one["batch"] for one in steps if "batch" in one])


def batches(sizes: Sequence[float]) -> Figures:
    """Summarise the batches that queries were in: one of 8 is in 8 answers and counts once."""
    if not sizes:
        return {}
    return {
        "mean batch": len(sizes) / sum(1 / size for size in sizes),
        "batch of the median query": quantile(sizes, 0.5),
        "largest batch": max(sizes),
    }


def refusals(seen: LoadResult, asked: int) -> Figures:
    """Return what an overloaded service refused of so many requests, how soon, and what failed."""
    refused = [one.ms for one in seen.samples if one.status in REFUSED]
    answered = [one.ms for one in seen.samples if one.status == OK]
    others = Counter(str(one.status) for one in seen.samples if one.status not in (OK, *REFUSED))
    others["connection"] = seen.errors
    others["unanswered"] = max(0, asked - len(seen.samples))
    figures: Figures = {"asked": asked, "answered": len(answered), "refused": len(refused)}
    if answered:
        figures["answered: p99, ms"] = quantile(answered, 0.99)
    if refused:
        prompt = 100 * sum(ms < PROMPT_MS for ms in refused) / len(refused)
        figures["refusals: p50, ms"] = quantile(refused, 0.5)
        figures["refusals: p99, ms"] = quantile(refused, 0.99)
        figures[f"refusals within {PROMPT_MS} ms, %"] = prompt
    failures = ", ".join(f"{count} x {what}" for what, count in sorted(others.items()) if count)
    return figures | {"other failures": failures or "none"}


def recovery(samples: Sequence[Sample], before_ms: float) -> float:
    """Return the seconds until answers are as quick as before (RUN, TOLERANCE), or infinity.

    A refusal counts as an answer that takes for ever.
    """
    ordered = sorted(samples)
    ms = [one.ms if one.status == OK else math.inf for one in ordered]
    for first in range(len(ms) - RUN + 1):
        if statistics.median(ms[first : first + RUN]) <= TOLERANCE * before_ms:
            return ordered[first].due
    return math.inf
