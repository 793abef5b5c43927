"""The engine of a replica: a bundle's model, and the gallery that it searches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from raycd import bundle
from raycd.api import IndexInfo, ModelInfo
from raycd.bundle import Bundle, SharedEncoders
from raycd.data.manifest import CATEGORY
from raycd.errors import WeightsError
from raycd.gallery.state import State
from raycd.model.folding import fold_batch_norms
from raycd.search.query import Answer, Prepared, Query
from raycd.search.searcher import Searcher
from serve.args import ServeArgs
from serve.live.engine_follower import EngineFollower
from serve.live.follower import Follower
from serve.live.store import GalleryStore

_NO_ANSWER = "the bundle does not answer its canary query"


class Engine:
    """A bundle at work. Nothing of it changes but the gallery's state. It takes seconds to make.

    Args:
        folder: The bundle.
        args: The settings.
        threads: Threads of torch and FAISS.
        model: The thread that every model of this replica runs in.
        store: The live gallery; None: the bundle's own.
        encoders: Those of this process, of which it may take one.

    Raises:
        WeightsError: The bundle is damaged, does not fit together or does not answer.
        GalleryError: The gallery cannot be read, or has images that this bundle's encoder has not
            encoded.
    """

    def __init__(
        self,
        folder: Path,
        args: ServeArgs,
        *,
        threads: int,
        model: ThreadPoolExecutor,
        store: GalleryStore | None,
        encoders: SharedEncoders | None = None,
    ) -> None:
        self._has_engine = bool(args.gallery_engine)
        self.bundle = bundle.load(
            folder, threads=threads, gallery=not self._has_engine, encoders=encoders
        )
        self.fingerprint = self.bundle.manifest.encoder.fingerprint
        fold_batch_norms(self.bundle.encoder.clip)
        device = "cuda" if args.gpus else "cpu"
        if store is None and args.index_on == "gpu":  # else the follower's
            self.bundle = replace(self.bundle, index=self.bundle.index.on(device))
        self.searcher = Searcher(
            self.bundle,
            threads=threads,
            device=device,
            precision=args.precision,
            graphs=args.cuda_graphs,
            text_cache=args.text_cache,
        )
        if store is not None:
            self.searcher.picture = lambda path: store.image(
                path, max_pixels=args.max_pixels, enough=self.searcher.enough
            )
        reranking = self.searcher.reranking
        reranking.depth = min(reranking.depth, args.max_rerank_depth)
        self.model = _model_info(self.bundle, reranking.depth)
        # In a gallery without categories of its own, images that are added get the same one.
        self.default_category = (CATEGORY,) if bundle.categories(folder) == {CATEGORY} else ()
        self.example_texts: list[str] = self.bundle.manifest.example_texts
        grey = Query(Image.new("RGB", (64, 64), "grey"), "is blue", top_k=1)
        self._prepared = self.searcher.prepare(grey)  # before any text is cached
        self._check_canary()
        self.follower: Follower | EngineFollower | None = None
        if store is not None and self._has_engine:
            self.follower = EngineFollower(self.searcher, store, model, args)
        elif store is not None:
            self.follower = Follower(self.searcher, store, model, args)

    def _check_canary(self) -> None:
        # Of the bundle's own gallery, which may be empty: it comes before the live one is loaded.
        try:
            feature_BD = self.searcher.encode([self._prepared]).query_BD
            [answer] = self.searcher.answer([self._prepared])
        except RuntimeError as error:
            raise WeightsError(_NO_ANSWER, got=error) from error
        if not np.isfinite(feature_BD).all():
            raise WeightsError(
                _NO_ANSWER, got="a feature that is not finite", expected="finite numbers"
            )
        self.check(answer, self._prepared.view)

    @property
    def canary(self) -> Prepared:
        """A query that runs both encoders and searches the gallery's newest state."""
        return replace(self._prepared, view=self.view)

    @property
    def inner_canary(self) -> Prepared:
        """A query that asks nothing outside of this process: no search engine."""
        return self._prepared if self._has_engine else self.canary

    def asks_outside(self, query: Prepared) -> bool:
        """Return whether a query is answered by a search engine."""
        return self._has_engine and query.view is not self.searcher.own

    def check(self, answer: Answer, view: State) -> None:
        """Raise WeightsError where an answer to the canary, asked of a view, is not one."""
        scores = [result.score for result in answer.results]
        if not np.isfinite(scores).all():
            raise WeightsError(_NO_ANSWER, got=f"scores {scores}", expected="finite scores")
        if not scores and len(view) and not self._has_engine:
            raise WeightsError(_NO_ANSWER, got="no result", expected=f"one of {len(view)} images")

    @property
    def view(self) -> State:
        """The gallery's newest state."""
        return self.searcher.view

    @property
    def without(self) -> int:
        """Images of the live gallery that it cannot find, for it has no feature of them."""
        return self.follower.without if self.follower else 0

    def index_info(self, view: State) -> IndexInfo:
        """Return what every answer says about the index that it searched."""
        return IndexInfo.model_construct(
            kind=view.kind,
            size=len(view),
            version=view.version,
            recall=view.recall,
            lag_s=round(self.follower.lag_s, 3) if self.follower else 0.0,
        )

    def close(self) -> None:
        """Stop following the gallery. Searches that are under way end as they would."""
        if self.follower:
            self.follower.stop()


def _model_info(loaded: Bundle, rerank_depth: int) -> ModelInfo:
    manifest = loaded.manifest
    return ModelInfo(
        preset=manifest.preset,
        encoder=manifest.encoder.name,
        fingerprint=manifest.encoder.fingerprint[:12],
        head=loaded.head_config.name,
        bundle=manifest.digest[:12],
        protocol=loaded.config.evaluate.protocol,
        metrics=manifest.metrics,
        rerank_depth=rerank_depth,
    )
