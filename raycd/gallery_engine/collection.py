"""A collection of Milvus that has a gallery for one encoder: an entity an image, and a marker.

    key       hash of the image's id: the primary key
    image_id  the id, for whoever looks at the collection
    version   of the image; 0 of the marker
    feature   L2-normalised; zeros of the marker
    length    of the feature before
    tags      what filters ask for, see `expressions`; numbers: those among the attributes
    shown     what answers show: category, attributes, path; of the marker: `Marker`

The marker says up to which version changes are there. It is written after them, in the collection
itself: a collection that was lost has none.

Shapes: B queries, D feature size.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from raycd.errors import GalleryError, brief
from raycd.gallery.records import Row
from raycd.gallery_engine import expressions
from raycd.gallery_engine.address import Address

T = TypeVar("T")

MARKER = "marker"  # its key, which no hash is
MOST = 16_384  # results of a search or a query: Milvus' own limit
_LEAST = float(np.finfo(np.float32).tiny)  # length of a feature
MAX_TAGS = 4096  # of an image: Milvus' limit of an array
MAX_NUMBERS = 1000  # of an image: of 55 bytes each, and Milvus' limit of JSON is 65,536
MAX_SHOWN = 60_000  # bytes of what an answer shows of an image, for the same reason
TIMEOUT_S, WRITE_S, LOAD_S = 5.0, 10.0, 60.0  # of a call that reads, writes, loads a collection
_MISSING = (100, 4)  # codes: there is no such collection
_NOT_LOADED = 101  # Milvus Lite forgets at its end which were loaded
_SHOWN = ["key", "image_id", "version", "feature", "length", "shown"]


@dataclass(frozen=True)
class Marker:
    """How far a collection has come."""

    version: int
    """Of the database: all changes up to it are there."""
    until: int
    """Version from which on the collection is whole: what it was filled up to at first."""
    written: int = 0
    """Milvus' time of the last change before this marker; 0: the engine tells none."""

    @property
    def whole(self) -> bool:
        """Return whether it may be searched."""
        return self.version >= self.until


class Collection:
    """A collection, for any thread. It connects when it is first used, and again after failures.

    Every method raises GalleryError: reason "engine" where the engine does not answer, "filling"
    where the collection is not there.

    Args:
        address: The engine.
        name: The collection's name.
        dim: Size of a feature, D.

    Attributes:
        failed: Why the last call has failed; None where the engine has answered it.
    """

    def __init__(self, address: Address, name: str, dim: int) -> None:
        self.address, self.name, self.dim = address, name, dim
        self._client: Any = None
        self._connecting = threading.Lock()
        self.failed: str | None = None

    def marker(self) -> Marker | None:
        """Return the marker; None where the collection has none, or is not there."""
        try:
            # As it is now: of several nodes, one may show an older marker after a newer one
            found = self.query(f'key == "{MARKER}"', ["shown"], written=0)
        except GalleryError as error:
            if error.reason != "filling":
                raise
            return None
        return Marker(**_json(found[0]["shown"])) if found else None

    def make(self) -> None:
        """Make the collection where it is absent, and have it loaded."""
        if not self._client_call(lambda client: client.has_collection(self.name)):
            self._client_call(self._make)
        self._client_call(lambda client: client.load_collection(self.name, timeout=LOAD_S))

    def _make(self, client: Any) -> None:
        from pymilvus import DataType

        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=32)
        schema.add_field("image_id", DataType.VARCHAR, max_length=65_535)
        schema.add_field("version", DataType.INT64)
        schema.add_field("feature", DataType.FLOAT_VECTOR, dim=self.dim)
        schema.add_field("length", DataType.FLOAT)
        schema.add_field(
            "tags",
            DataType.ARRAY,
            element_type=DataType.VARCHAR,
            max_capacity=MAX_TAGS,
            max_length=25,
        )
        schema.add_field("numbers", DataType.JSON)
        schema.add_field("shown", DataType.JSON)
        indexes = client.prepare_index_params()
        # The kind of index is the engine's choice, or its operators'
        indexes.add_index("feature", index_type="AUTOINDEX", metric_type="IP")
        indexes.add_index("version", index_type="INVERTED")
        if not client.get_server_version().startswith("milvus_lite"):  # it indexes no arrays
            indexes.add_index("tags", index_type="INVERTED")
        client.create_collection(self.name, schema=schema, index_params=indexes)

    def drop(self) -> None:
        """Remove the collection."""
        self._client_call(lambda client: client.drop_collection(self.name))

    def put(self, rows: Sequence[Row]) -> None:
        """Add images with features, or put them in place of those of the same ids."""
        if rows:
            self._called("upsert", timeout=WRITE_S, data=[_entity(row) for row in rows])

    def delete(self, image_ids: Sequence[str]) -> None:
        """Remove images, if they are there."""
        if image_ids:
            self._called("delete", timeout=WRITE_S, filter=expressions.keys(image_ids))

    def mark(self, version: int, until: int) -> Marker:
        """Write the marker, and return it. All changes up to that version are there before."""
        marker = Marker(version, until, self._written())
        entity = {
            "key": MARKER,
            "image_id": "",
            "version": 0,
            "feature": np.zeros(self.dim, np.float32),
            "length": 0.0,
            "tags": [],
            "numbers": {},
            "shown": asdict(marker),
        }
        self._called("upsert", timeout=WRITE_S, data=[entity])
        return marker

    def _written(self) -> int:
        """Return Milvus' time of this process' last change of the collection; 0: it tells none."""
        from pymilvus.client.ts_utils import get_collection_ts

        address = self.address
        return int(get_collection_ts(self.name, address.endpoint, address.database) or 0)

    def count(self, expression: str, *, written: int) -> int:
        """Count entities, once all changes before a `Marker.written` are there."""
        found = self.query(expression, ["count(*)"], written=written)
        return int(found[0]["count(*)"])

    def query(
        self, expression: str, fields: Sequence[str] = (), *, written: int, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Return fields of entities; without any fields what `Entity` needs."""
        options = {} if limit is None else {"limit": limit}
        found = self._called(
            "query",
            filter=expression,
            output_fields=list(fields or _SHOWN),
            **options,
            **_consistency(written),
        )
        return [dict(one) for one in found]

    def search(
        self, query_BD: NDArray[np.float32], k: int, expression: str | None, *, written: int
    ) -> list[list[dict[str, Any]]]:
        """Return the entities of the k largest inner products, of each query.

        Args:
            expression: What an entity must fulfil; None: all, the marker is left out afterwards.
        """
        found = self._called(
            "search",
            data=list(query_BD),
            filter=expression or "",
            limit=min(k + (expression is None), MOST),
            output_fields=_SHOWN,
            anns_field="feature",
            search_params={"metric_type": "IP"},
            **_consistency(written),
        )
        entities = [[dict(hit["entity"]) for hit in hits] for hits in found]
        return [[one for one in some if one["key"] != MARKER] for some in entities]

    def _called(self, method: str, *, timeout: float = TIMEOUT_S, **arguments: Any) -> Any:
        return self._client_call(
            lambda client: getattr(client, method)(self.name, timeout=timeout, **arguments)
        )

    def _client_call(self, call: Callable[[Any], T]) -> T:
        try:
            client = self._connected()
            try:
                found = call(client)
            except Exception as error:
                if getattr(error, "code", None) != _NOT_LOADED:
                    raise
                client.load_collection(self.name, timeout=LOAD_S)
                found = call(client)
        except Exception as error:  # pymilvus raises its own and those of gRPC
            failure = self._failure(error)
            if failure is None:
                raise
            self.failed = str(failure) if failure.reason == "engine" else None
            raise failure from error
        self.failed = None
        return found

    def _connected(self) -> Any:
        with self._connecting:
            if self._client is None:
                self._client = self.address.connected(TIMEOUT_S)
                # pymilvus keeps a connection that is not closed. Searches of a bundle that was
                # replaced may still use this one: it ends with the last of them
                weakref.finalize(self, self._client.close).atexit = False
            return self._client

    def _failure(self, error: Exception) -> GalleryError | None:
        """Return what an error of a call means; None for a mistake of ours."""
        import grpc  # type: ignore[import-untyped]  # it has no stubs
        from pymilvus.exceptions import MilvusException

        if isinstance(error, MilvusException) and error.code in _MISSING:
            return GalleryError(f"the search engine has no collection {self.name}", "filling")
        if isinstance(error, MilvusException | grpc.RpcError | ValueError | ConnectionError):
            return GalleryError(
                "the gallery's search engine does not answer, or refuses",
                "engine",
                got=f"{self.address.endpoint}: {brief(error)}",
                do="see that it runs and that address, database and token are right",
            )
        return None


def _consistency(written: int) -> dict[str, Any]:
    # Of an engine with several nodes any may answer: it waits until it has what was written then,
    # which it has had for long. "Strong" would wait for what is written now.
    if written:
        return {"consistency_level": "Customized", "guarantee_timestamp": written}
    return {"consistency_level": "Strong"}


def _entity(row: Row) -> dict[str, Any]:
    assert row.feature is not None, "an image without a feature is not searched"
    length = float(np.linalg.norm(row.feature))
    shown = {
        "category": next(iter(row.categories), ""),
        "attributes": dict(row.attributes),
        "path": row.path,
    }
    if len(json.dumps(shown, ensure_ascii=False).encode("utf-8", "replace")) > MAX_SHOWN:
        shown["attributes"] = {}
    return {
        "key": expressions.key(row.image_id),
        "image_id": row.image_id,
        "version": row.version,
        "feature": row.feature / np.float32(max(length, _LEAST)),
        "length": length,
        "tags": expressions.tags(row.categories, row.attributes)[:MAX_TAGS],
        "numbers": dict(islice(expressions.numbers(row.attributes).items(), MAX_NUMBERS)),
        "shown": shown,
    }


def _json(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = value if isinstance(value, dict) else json.loads(value)
    return found
