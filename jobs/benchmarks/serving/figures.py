"""From samples to figures: rates, quantiles, where the time goes, and when a server is itself
again.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from jobs.benchmarks.serving.plan import OK, REFUSED, Sample

Figures = dict[str, float | str]

STEPS = ("read", "decode", "wait", "encode", "search")
PROMPT_MS = 100  # within which an overloaded service must say no
RUN = 11  # answers whose median tells whether a service has recovered
TOLERANCE = 1.25  # of the median from before


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` of all do not exceed (nearest rank); NaN of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else math.nan


def speed(samples: Sequence[Sample], begin: float, end: float) -> Figures:
    """Rate and latency of what was answered from `begin` to `end`, in seconds of the phase."""
    inside = [one for one in samples if begin <= one.due + one.ms / 1000 < end]
    answered = [one.ms for one in inside if one.status == OK]
    return {
        "successes/s": len(answered) / (end - begin),
        "p50, ms": quantile(answered, 0.5),
        "p99, ms": quantile(answered, 0.99),
        "failures": len(inside) - len(answered),
    }


def timings(header: str) -> dict[str, float]:
    """Server-Timing: the milliseconds of each step, and how many queries `batch;desc="8"` was."""
    told = {}
    for entry in header.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        if "dur" in values:
            told[name] = float(values["dur"])
        elif name == "batch":
            told[name] = float(values["desc"].strip('"'))
    return told


def breakdown(samples: Sequence[Sample]) -> Figures:
    """Mean milliseconds of each step, what is left for HTTP, proxy and client, and the sizes of
    batches.
    """
    answered = [
        (one.ms, told) for one in samples if one.status == OK and (told := timings(one.timing))
    ]
    if not answered:
        return {}
    mean = {step: statistics.fmean(told.get(step, 0.0) for _, told in answered) for step in STEPS}
    whole = statistics.fmean(ms for ms, _ in answered)
    total = statistics.fmean(told.get("total", 0.0) for _, told in answered)
    figures: Figures = {f"mean {step}, ms": value for step, value in mean.items()}
    figures["mean rest of the service, ms"] = total - sum(mean.values())
    figures["mean outside of the service, ms"] = whole - total
    return figures | batches([told["batch"] for _, told in answered if "batch" in told])


def batches(sizes: Sequence[float]) -> Figures:
    """From the size of the batch that each query was in: a batch of 8 is told by 8 queries and
    counts once.
    """
    if not sizes:
        return {}
    return {
        "mean batch": len(sizes) / sum(1 / size for size in sizes),
        "batch of the median query": quantile(sizes, 0.5),
        "largest batch": max(sizes),
    }


def refusals(samples: Sequence[Sample]) -> Figures:
    """What an overloaded service said no to, how soon, and what else went wrong."""
    refused = [one.ms for one in samples if one.status in REFUSED]
    answered = [one.ms for one in samples if one.status == OK]
    others = Counter(one.status for one in samples if one.status not in (OK, *REFUSED))
    figures: Figures = {"asked": len(samples), "answered": len(answered), "refused": len(refused)}
    if answered:
        figures["answered: p99, ms"] = quantile(answered, 0.99)
    if refused:
        figures["refusals: p50, ms"] = quantile(refused, 0.5)
        figures["refusals: p99, ms"] = quantile(refused, 0.99)
        figures[f"refusals within {PROMPT_MS} ms, %"] = (
            100 * sum(ms < PROMPT_MS for ms in refused) / len(refused)
        )
    failures = ", ".join(f"{count} x {status}" for status, count in sorted(others.items()))
    return figures | {"other failures": failures or "none"}


def recovery(samples: Sequence[Sample], before_ms: float) -> float:
    """Seconds until the median of `RUN` answers in a row is within `TOLERANCE` of `before_ms`; inf:
    it never is.

    A refusal counts as an answer that takes for ever.
    """
    ordered = sorted(samples)
    ms = [one.ms if one.status == OK else math.inf for one in ordered]
    for first in range(len(ms) - RUN + 1):
        if statistics.median(ms[first : first + RUN]) <= TOLERANCE * before_ms:
            return ordered[first].due
    return math.inf
