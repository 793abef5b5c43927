"""A bundle at work: its model, the gallery that it searches, and what every answer says of both."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from raycd.api import IndexInfo, ModelInfo
from raycd.errors import WeightsError
from raycd.model import bundle
from raycd.model.bundle import Bundle
from raycd.model.fold import fold_batch_norms
from raycd.query import Prepared, Query
from raycd.search import Searcher
from raycd.view import View
from serve.args import ServeArgs
from serve.follower import Follower
from serve.store import Store


class Engine:
    """Made in a thread, for it takes seconds. Nothing of it changes afterwards but the gallery's state.

    Args:
        model: The thread that every model of this replica runs in.
        store: The live gallery; None: the bundle's own.

    Raises:
        WeightsError: The bundle is damaged, does not fit together or does not answer.
        CatalogueError: The gallery cannot be read, or has images that this bundle's encoder has not encoded.
    """

    def __init__(
        self, folder: Path, args: ServeArgs, *, threads: int, model: ThreadPoolExecutor, store: Store | None
    ) -> None:
        self.bundle = bundle.load(folder, threads=threads)
        self.fingerprint = self.bundle.manifest.encoder.fingerprint
        fold_batch_norms(self.bundle.encoder.clip)
        device = "cuda" if args.gpus else "cpu"
        self.searcher = Searcher(self.bundle, threads=threads, device=device, text_cache=args.text_cache)
        self.model = describe(self.bundle)
        self.example_texts: list[str] = self.bundle.manifest.example_texts
        self.canary = self._canary()
        self.follower = None if store is None else Follower(self.searcher, store, model, args)

    def _canary(self) -> Prepared:
        """A query that runs both encoders and the search each time. Raises WeightsError where it is not answered."""
        grey = Query(Image.new("RGB", (64, 64), "grey"), "is blue", top_k=1)
        canary = self.searcher.prepare(grey)  # before any text is known
        try:
            [answer] = self.searcher.answer([canary])
        except RuntimeError as error:
            raise WeightsError("the bundle does not answer its canary query", got=error) from error
        scores = [result.score for result in answer.results]
        if not np.isfinite(scores).all():
            raise WeightsError(
                "the bundle does not answer its canary query", got=f"scores {scores}", expected="finite scores"
            )
        return canary

    @property
    def view(self) -> View:
        """The gallery's newest state."""
        return self.searcher.view

    def index_info(self, view: View) -> IndexInfo:
        """What every answer says about the index that it searched."""
        return IndexInfo.model_construct(
            kind=view.index.kind,
            size=len(view),
            version=view.version,
            recall=view.index.recall,
            lag_s=round(self.follower.lag_s, 3) if self.follower else 0.0,
        )

    def close(self) -> None:
        """Follow no more. Searches that are under way end as they would."""
        if self.follower:
            self.follower.stop()


def describe(loaded: Bundle) -> ModelInfo:
    """What every answer says about the model."""
    manifest = loaded.manifest
    return ModelInfo(
        preset=manifest.preset,
        encoder=manifest.encoder.name,
        fingerprint=manifest.encoder.fingerprint[:12],
        head=loaded.head_config.name,
        protocol=loaded.config.evaluate.protocol,
        metrics=manifest.metrics,
    )
