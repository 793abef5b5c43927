"""What the service can be told: `args` in config.yaml, options of `python serve/app.py`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from raycd.config import Count, Positive

Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ServeArgs(BaseModel):
    """Arguments of `serve.app:build`. Every limit answers with a problem document that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    bundle: Annotated[str, Field(min_length=1)] = "runs/demo/bundle"
    """Folder of the bundle, seen from every node that runs a replica; best absolute."""
    replicas: Positive = 1
    """Copies of the model."""
    threads: Count = 0
    """Threads of torch and FAISS in a replica; 0 shares the node's cores, less one, among the replicas."""
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """CPUs that Ray reserves for a replica."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray reserves for a replica; above 0 the model runs there."""

    max_batch_size: Positive = 32
    """Queries that the model answers at once."""
    batch_wait_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that the first query of a batch waits for others; 0: what has come while the model was at work."""
    max_queue: Positive = 64
    """Searches at work and waiting in a replica; one more is refused at once (503)."""
    timeout_s: Seconds = 30.0
    """Seconds after which a search is given up (503), whatever a client's headers say."""
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
    formats: Annotated[tuple[Format, ...], Field(min_length=1)] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
    """Formats of images that are taken."""
    max_text: Positive = 1000
    """Characters of a text."""
    top_k: Positive = 10
    """Results of a search that names no top_k."""
    max_top_k: Positive = 200
    """Results of one search."""
    max_offset: Count = 1000
    """Results that a search may leave out at the beginning."""
    max_filters: Positive = 100
    """Categories and attribute values that a search filters by."""
    max_batch: Positive = 32
    """Searches of one /v1/search/batch."""
    max_page: Positive = 200
    """Images of one page of /v1/gallery."""
    image_url: bool = False
    """Let clients give an image by its https URL, which the service then fetches from public addresses only."""
    fetch_timeout_s: Seconds = 5.0
    """Seconds that fetching an image may take."""
