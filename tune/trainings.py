"""Whole trainings as Ray tasks, for `stage2.epochs` each, kept in the sweep's journal and not done
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray

from raycd.config import Config
from raycd.evaluate import Metric
from raycd.progress import Bar
from tune.journal import Journal
from tune.runner import trial_resources
from tune.space import Space, Values
from tune.trial import Tables, evaluated, set_threads


class Place(NamedTuple):
    """Where a round of trainings is kept in the journal, the split that it is measured on, and its
    name for people.
    """

    folder: str
    split: str
    title: str


def train_all(
    place: Place,
    variants: Mapping[str, Values],
    seeds: Sequence[int],
    tables: Tables,
    space: Space,
    metric: Metric,
    journal: Journal,
) -> dict[str, list[dict[str, Any]]]:
    """Train each variant's settings with each seed: name -> what `evaluated` gave, in the order of
    the seeds.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    todo = {}
    shared = ray.put((tables, metric, place.split))
    resources = trial_resources(space.config)
    task = ray.remote(num_cpus=resources["cpu"], num_gpus=resources.get("gpu", 0), max_retries=2)(
        _evaluated
    )
    with Bar(place.title, total=len(variants) * len(seeds), unit="trainings") as bar:
        for seed in seeds:
            for name, settings in variants.items():
                known = journal.run.read_json(f"{place.folder}/{name}-{seed}.json")
                if known is not None and known["settings"] == settings:
                    found[name, seed] = known
                    bar.advance()
                else:
                    seeded = space.configured(settings).model_copy(update={"seed": seed})
                    todo[task.remote(shared, seeded)] = (name, seed, settings)
        while todo:
            [done], _ = ray.wait(list(todo))
            name, seed, settings = todo.pop(done)
            found[name, seed] = {"settings": settings, "seed": seed, **ray.get(done)}
            journal.run.write_json(f"{place.folder}/{name}-{seed}.json", found[name, seed])
            bar.advance()
    return {name: [found[name, seed] for seed in seeds] for name in variants}


def _evaluated(shared: tuple[Tables, Metric, str], config: Config) -> dict[str, Any]:
    tables, metric, split = shared
    set_threads(config)
    return evaluated(tables, config, metric, split)
