"""The process of a shadow: an actor of Ray on the node of its replica, with which it ends.

Beside the first model in one process, even a thread of low priority makes answers wait: where
others want the cores it is put off while it holds Python's lock.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raycd.api import SearchRequest
from serve.args import Second, ServeArgs, Wanted
from serve.engine.queries import QueryImage
from serve.second.shadow import Loaded, Seen, Shadow, ShadowObserver

if TYPE_CHECKING:  # it needs torch, for seconds
    from serve.replica import Replica

NICE = 10  # niceness of its threads: a tenth of a core that the answers want


def beside(args: ServeArgs, name: str, observer: ShadowObserver) -> Shadow | None:
    """Return the shadow that the settings ask for, if any; its process starts now.

    Args:
        args: The settings of the replica.
        name: The service's, which owns the gallery.
        observer: What records its work.
    """
    if not args.second.shadow:
        return None
    here = ray.get_runtime_context().get_node_id()
    actor = (
        ray.remote(ShadowActor)
        .options(
            num_cpus=0,
            max_restarts=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False),
        )
        .remote(args, name)
    )
    return Shadow(args.second, RayProcess(actor), observer, args.timeout_s)


class RayProcess:
    """An actor as a shadow asks it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def loaded(self) -> Loaded:
        """Return what became of its start, once it is over."""
        return Loaded(*await self._actor.loaded.remote())

    async def answer(self, asked: SearchRequest, sent: Sequence[QueryImage]) -> Seen:
        """Return its answer to a search. Pictures go once: their bytes, not their base64, too."""
        plain = asked.model_copy(update={"image_base64": None, "images": []})
        return Seen(*await self._actor.answer.remote(plain, sent))

    def end(self) -> None:
        """End what it does, so that it starts anew."""
        ray.kill(self._actor, no_restart=False)


class ShadowActor:
    """A replica of the second model without HTTP, on CPUs, one search at a time.

    No method may be a coroutine: then Ray would run `__init__` in an event loop, and in a thread of
    another niceness.
    """

    def __init__(self, args: ServeArgs, name: str) -> None:
        os.nice(NICE)  # of this thread, and of all that it starts
        from serve.replica import Replica

        self._loop = asyncio.new_event_loop()
        # The gallery is the first model's, wherever its database is, and so are the events.
        own = {"second": Second(), "events": False, "explore": 0.0}
        # On CPUs
        own |= {"gpus": 0.0, "precision": "fp32", "cuda_graphs": False, "index_on": "cpu"}
        self._replica = Replica(args.model_copy(update=own), name=name, observer=Unobserved())
        wanted = Wanted(bundle=args.second.bundle)
        self._loop.run_until_complete(self._replica.change_bundle(wanted.model_dump()))

    @ray.method(max_task_retries=-1)  # whoever asks while it starts anew waits
    def loaded(self) -> Loaded:
        """Return what became of the start."""
        if refused := self._replica.refused:
            return Loaded(None, refused, because=self._replica.refused_because)
        engine = self._replica.engine
        return Loaded(engine.model.bundle, None, engine.without)

    def answer(self, asked: SearchRequest, sent: Sequence[QueryImage]) -> Seen:
        """Return the answer to a search. Raises what a search of a replica raises."""
        if self._replica.refused:  # then the engine is the first model's
            raise RuntimeError("the second model is not loaded")
        return self._loop.run_until_complete(_seen(self._replica, asked, sent))


async def _seen(replica: Replica, asked: SearchRequest, sent: Sequence[QueryImage]) -> Seen:
    began, engine = time.perf_counter(), replica.engine
    query = await replica.prepare(engine, asked, sent)
    answer = await replica.answer(engine, query)
    return Seen([result.image_id for result in answer.results], time.perf_counter() - began)


class Unobserved:
    """What records nothing: batches and the gallery's state are the first model's matter."""

    def batch(self, answer: object, busy: int) -> None:
        """Record nothing."""

    def state(self, replica: object) -> None:
        """Record nothing."""

    def feedback(self, written: int, lost: int) -> None:
        """Record nothing."""
