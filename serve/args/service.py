"""All settings of the service, and where `python serve/app.py` listens beside them."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from raycd.config import Count, Positive, Section
from raycd.hosts import as_browsers_write
from serve.args.galleries import DEFAULT, NO_GALLERY, GalleriesArgs, check_apart
from serve.args.replicas import ReplicaCount, Replicas
from serve.args.second import Second

MAX_CANDIDATES = 5000  # `candidates`: of these the cosines take 300 MB
REGISTRY = "models:/"  # `bundle` in MLflow's registry

Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def is_fetched(bundle: str) -> bool:
    """Return whether a bundle is not a folder, but copied from MLflow's registry or a store."""
    return bundle.startswith(REGISTRY) or "://" in bundle


class ServeArgs(Section):
    """Arguments of `serve.app:build`. Every limit answers with a problem document that names it."""

    bundle: Annotated[str, Field(min_length=1)] = "runs/demo/bundle"
    """Folder of the bundle, seen from every node that runs a replica; best absolute. Or a bundle of
    MLflow's registry, models:/name/version or models:/name@alias, or on a store, s3://...: every
    node fetches it.
    """
    replicas: ReplicaCount = Replicas()
    """Copies of the model: a number, or as many as the load asks for; target is the requests under
    way for each: {"min": 1, "max": 3, "target": 8}.
    """
    threads: Count = 0
    """Threads of torch and FAISS in a replica; 0 shares the node's cores, less one, among the
    most replicas that there may be.
    """
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """CPUs that Ray reserves for a replica."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray reserves for a replica; above 0 the model runs there."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoders; bf16 holds their weights in it, faster on GPUs that have it."""
    cuda_graphs: bool = False
    """Encode batches of up to 32 images and texts by CUDA graphs, which saves a GPU the wait for
    its kernels' launches.
    """
    index_on: Literal["cpu", "gpu"] = "cpu"
    """Where a replica searches: gpu holds the features in float32 on its card, and every search
    compares all of them.
    """

    gallery: str = ""
    """Database of the live gallery: a SQLite file or a postgresql:// URL. Empty: gallery.sqlite
    beside the bundle's folder. none: the bundle's own gallery, which does not change.
    """
    gallery_engine: str = ""
    """Search engine that has the gallery's images, in place of an index in each replica:
    milvus://<host>:19530. It is kept at the state of the gallery's database.
    """
    pictures: str = ""
    """Folder or fsspec URI of the pictures that clients add; empty: beside the SQLite file."""
    lag_s: Seconds = 1.0
    """Seconds after which every replica knows of a change of the gallery."""

    second: Second = Second()
    """A second model beside the first."""

    max_batch_size: Positive = 32
    """Queries that the model answers at once."""
    batch_wait_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that the first query of a batch waits for others; 0: what has come while the model
    was at work.
    """
    max_queue: Positive = 64
    """Searches at work and waiting in a replica; one more is refused at once (503). Likewise for
    writes, for imports, and for pages of the gallery and pictures, each by itself.
    """
    timeout_s: Seconds = 30.0
    """Seconds after which a search is given up (503), whatever a client's headers say."""
    body_timeout_s: Seconds = 10.0
    """Seconds in which a request's body must have come in (408); where 2 max_queue of them come in
    at once, the slowest may take 1 s.
    """
    text_cache: Count = 10_000
    """Texts whose features are kept; 0 keeps none."""
    thumbnail_cache: Count = 4_000
    """Thumbnails that are kept in memory."""

    max_body_bytes: Positive = 20_000_000
    """Larger requests are refused before they are read."""
    max_pixels: Positive = 50_000_000
    """Images of more pixels are refused before they are decoded."""
    min_side: Positive = 8
    """Images with a smaller side are refused."""
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = (
        "JPEG",
        "PNG",
        "WEBP",
        "GIF",
        "BMP",
        "TIFF",
    )
    """Formats of images that are taken."""
    max_text: Positive = 1000
    """Characters of a text."""
    top_k: Positive = 10
    """Results of a search that names no top_k."""
    max_images: Positive = 8
    """Images of one search. Each counts as a search among those of max_queue."""
    max_top_k: Positive = 200
    """Results of one search."""
    max_offset: Count = 1000
    """Results that a search may leave out at the beginning."""
    max_rerank_depth: Count = 1000
    """First candidates of a search that a model which re-ranks may put in its own order."""
    candidates: Annotated[int, Field(ge=1, le=MAX_CANDIDATES)] = 500
    """First candidates of a search that boosts, hides near-duplicates, groups or diversifies; each
    is compared with each.
    """
    near_duplicate: Annotated[float, Field(gt=0, le=1)] = 0.995
    """Cosine from which two images are near-duplicates; what fits depends on the encoder
    (docs/serving.md).
    """
    max_filters: Positive = 100
    """Categories, attribute values and images that a search filters by; an attribute without a
    value counts, too.
    """
    max_batch: Positive = 32
    """Searches of one /v1/search/batch."""
    max_page: Positive = 200
    """Images of one page of /v1/gallery."""
    max_import: Positive = 10_000
    """Lines of one /v1/gallery:import."""
    max_attributes: Positive = 64
    """Categories and attributes of an image that is added."""
    image_url: bool = False
    """Let clients give an image by its https URL, which the service then fetches from public
    addresses only.
    """
    fetch_timeout_s: Seconds = 5.0
    """Seconds that fetching an image may take."""

    events: bool = False
    """Keep searches, what they showed, and the events that clients send of it, in the gallery's
    database, for jobs/feedback.py.
    """
    events_texts: Literal["text", "hash"] = "text"
    """What is kept of a search's text: itself, or its SHA-256 alone."""
    events_days: Annotated[float, Field(ge=0)] = 90.0
    """Days after which searches and events are removed; 0: never."""
    events_queue: Positive = 10_000
    """Searches and events that wait to be written; what comes beyond that is lost (a search) or
    refused (503).
    """
    max_events: Positive = 1000
    """Events of one /v1/events."""
    explore: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the searches of which two of the first ten results are swapped by the toss of a
    coin, which measures what a position does to clicks.
    """

    log_format: Literal["text", "json"] = "text"
    """Format of the service's log: lines of text, or a JSON object each."""
    log_dir: str = ""
    """Folder of the service's log, on every node; empty: that of Ray's own logs, which goes with a
    Ray of the service's own.
    """

    api_keys: str = ""
    """File of API keys (serve/keys.py), seen from every node that runs a replica; without it nobody
    needs a key.
    """
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may use the service, such as https://example.org; * is every one's, with
    api_keys only.
    """
    hosts: tuple[str, ...] = ()
    """Names, without port, in the Host header of requests that are answered; none or * is any."""

    galleries: GalleriesArgs = Field(default={})
    """Further galleries by name, each with its bundle and, if need be, its gallery, gallery_engine
    and pictures: {"shoes": {"bundle": "runs/shoes/bundle"}} answers under /v1/galleries/shoes.
    """

    @field_validator("cuda_graphs", "index_on")
    @classmethod
    def _are_of_gpus(cls, given: bool | str, info: ValidationInfo) -> bool | str:
        if given not in (False, "cpu") and not info.data.get("gpus"):
            raise ValueError("it is for replicas on GPUs: got gpus 0, expected more; set gpus, too")
        return given

    @field_validator("gallery")
    @classmethod
    def _has_a_database(cls, gallery: str, info: ValidationInfo) -> str:
        if not gallery and is_fetched(info.data.get("bundle", "")):
            raise ValueError(
                f"a bundle of the registry ({REGISTRY}...) or a store has no folder for a gallery "
                "beside it: "
                "got no gallery, expected a SQLite file, a postgresql:// URL or none; set gallery"
            )
        return gallery

    @field_validator("gallery_engine", "events")
    @classmethod
    def _has_no_use_without(cls, given: str | bool, info: ValidationInfo) -> str | bool:
        if given and info.data.get("gallery") == NO_GALLERY:
            raise ValueError(
                f"{info.field_name} needs the gallery's database: got gallery none, expected a "
                "SQLite file or a postgresql:// URL"
            )
        return given

    @field_validator("gallery_engine")
    @classmethod
    def _lite_is_of_one(cls, engine: str, info: ValidationInfo) -> str:
        if engine.endswith(".db") and info.data.get("replicas", Replicas()).max > 1:
            raise ValueError(
                "a file of Milvus Lite belongs to one process: got several replicas, expected 1, "
                "or the address of a server"
            )
        return engine

    @field_validator("max_events")
    @classmethod
    def _fit_into_the_queue(cls, max_events: int, info: ValidationInfo) -> int:
        queue = info.data.get("events_queue", max_events)
        if max_events > queue:
            raise ValueError(
                f"above events_queue: got {max_events}, but a request of more events than {queue} "
                "would always be refused"
            )
        return max_events

    @field_validator("max_top_k")
    @classmethod
    def _has_room_for_the_default(cls, max_top_k: int, info: ValidationInfo) -> int:
        top_k = info.data.get("top_k", max_top_k)
        if top_k > max_top_k:
            raise ValueError(
                f"below top_k: got {max_top_k}, but a search that names no top_k has {top_k}"
            )
        return max_top_k

    @field_validator("explore")
    @classmethod
    def _explores_for_events(cls, explore: float, info: ValidationInfo) -> float:
        if explore and not info.data.get("events"):
            raise ValueError("what results are swapped for is recorded with events: set events")
        return explore

    @field_validator("second")
    @classmethod
    def _second_has_an_index(cls, second: Second, info: ValidationInfo) -> Second:
        if second.bundle and info.data.get("gallery_engine"):
            raise ValueError(
                "a search engine has the gallery for one model: got gallery_engine and "
                "second.bundle, expected one of them"
            )
        return second

    @field_validator("max_queue")
    @classmethod
    def _above_the_target(cls, max_queue: int, info: ValidationInfo) -> int:
        replicas = info.data.get("replicas", Replicas())
        if replicas.follow_load and replicas.target >= max_queue:
            raise ValueError(
                f"above the target of replicas: got {replicas.target:g}, but a replica refuses "
                f"searches beyond {max_queue}, so that none would ever be added"
            )
        return max_queue

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "*" in origins and not info.data.get("api_keys"):
            raise ValueError(
                "* would let every page that anyone visits change the gallery: set api_keys, too"
            )
        wrong = [
            origin for origin in origins if not re.fullmatch(r"\*|https?://[^\s/?#@]+", origin)
        ]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} is not an origin: https://name or https://name:port, no path"
            )
        _check_ascii(origins)
        return tuple(map(_as_sent, origins))

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [
            host
            for host in hosts
            if not re.fullmatch(r"[^\s:/?#@\[\]]+|\[?[0-9A-Fa-f:.]+\]?", host)
        ]
        if wrong:
            raise ValueError(
                f"{wrong[0]!r} is not a host: a name or an address, without scheme and port"
            )
        _check_ascii(hosts)
        return tuple(map(as_browsers_write, hosts))

    @field_validator("galleries")
    @classmethod
    def _galleries_are_apart(cls, galleries: GalleriesArgs, info: ValidationInfo) -> GalleriesArgs:
        given = info.data
        if "bundle" not in given or "gallery" not in given:  # which is told already
            return galleries
        for name, one in galleries.items():
            replicas = given.get("replicas", Replicas())
            try:
                ServeArgs(**one.model_dump(), replicas=replicas)
            except ValidationError as error:
                [wrong, *_] = error.errors()
                raise ValueError(f"{name}: {wrong['ctx']['error']}") from None
        named = {name: (one.bundle, one.gallery, one.pictures) for name, one in galleries.items()}
        own = given["bundle"], given["gallery"], given.get("pictures", "")
        check_apart({DEFAULT: own, **named})
        return galleries

    def of(self, gallery: str) -> Self:
        """Return the settings by which one of the galleries is served.

        A second model is the default's alone; everything else that is not its own is the service's.
        """
        if gallery == DEFAULT:
            return self
        own = self.galleries[gallery].model_dump()
        return self.model_copy(update={**own, "second": Second()})


def _check_ascii(names: Sequence[str]) -> None:
    """Raise ValueError for a name that no browser sends: with a pattern, or not in ASCII."""
    for name in names:
        if not name.isascii() or ("*" in name and name != "*"):
            raise ValueError(
                f"{name!r} matches nothing: a whole name as browsers send it (xn--...), or * alone"
            )


def _as_sent(origin: str) -> str:
    """Return an origin as browsers write it, who leave out the port that its scheme has anyway."""
    if origin == "*":
        return origin
    parts = urlsplit(origin.lower())
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{origin!r} is not an origin: {error}") from None
    if (parts.scheme, port) in (("https", 443), ("http", 80)):
        port = None
    host = as_browsers_write(parts.hostname or "")
    return f"{parts.scheme}://{host}" + ("" if port is None else f":{port}")


class LocalArgs(ServeArgs):
    """Settings of `python serve/app.py`: those of the service, and where this machine listens."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is everyone's."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port to listen on."""
    proxy: Literal["default", "haproxy"] = "default"
    """What stands before the replicas: Ray Serve's own proxy, or HAProxy, which is faster and opens
    two more ports (docs/serving.md).
    """
    traces: bool = False
    """Send traces by OTLP over HTTP to where OTEL_EXPORTER_OTLP_ENDPOINT in the environment says
    (docs/monitoring.md).
    """
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of the metrics for Prometheus; 0 takes a free one."""
