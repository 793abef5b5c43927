"""The floor: what one writes without raycd's service, in FastAPI, torch and a flat FAISS index.

    PYTHONPATH=. python -m jobs.benchmarks.serving.floor --bundle runs/demo/bundle --port 8001

One request at a time: the model runs in the event loop, which answers more requests a second here
than an endpoint of threads that wait for a lock. The model is raycd's own, loaded once, in
inference mode, warm before the first request.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, File, Form, UploadFile
from fastapi.responses import JSONResponse
from PIL import Image

from raycd import bundle


class BareModel:
    """Encoder, head and index of a bundle."""

    def __init__(self, folder: Path) -> None:
        loaded = bundle.load(folder)
        self._encoder, self._head = loaded.encoder.eval(), loaded.head.eval()
        categories = [
            names[0] if names else "" for names in loaded.gallery["categories"].to_pylist()
        ]
        self._images = list(zip(loaded.gallery["image_id"].to_pylist(), categories, strict=True))
        features = bundle.gallery_features(bundle.read_gallery(folder))
        self._index = faiss.IndexFlatIP(features.shape[1])
        self._index.add(features / np.linalg.norm(features, axis=1, keepdims=True))
        self.search(Image.new("RGB", (64, 64)), "is blue", 10)

    @torch.inference_mode()
    def search(self, image: Image.Image, text: str, top_k: int) -> list[dict[str, Any]]:
        """Return the images that look most like `image`, changed as `text` says."""
        image_feature = self._encoder.encode_images(self._encoder.preprocess(image)[None])
        tokens = self._encoder.tokenize([text])
        text_feature = self._encoder.encode_tokens(tokens, whole=True)
        scores, rows = self._index.search(self._head(image_feature, text_feature).numpy(), top_k)
        found = [(*self._images[row], score) for row, score in zip(rows[0], scores[0], strict=True)]
        return [{"image_id": one, "category": name, "score": float(s)} for one, name, s in found]


def build_app(model: BareModel) -> FastAPI:
    """Build the ASGI application."""
    app = FastAPI()

    @app.post("/v1/search")
    async def search(
        image: Annotated[UploadFile, File()],
        text: Annotated[str, Form()],
        top_k: Annotated[int, Form()] = 10,
    ) -> JSONResponse:
        picture = Image.open(BytesIO(await image.read())).convert("RGB")
        return JSONResponse({"results": model.search(picture, text, top_k)})

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer composed queries, one at a time.")
    parser.add_argument("--bundle", type=Path, required=True, help="Folder of the bundle.")
    parser.add_argument("--port", type=int, required=True, help="Port to listen on.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch and FAISS.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faiss.omp_set_num_threads(options.threads)
    app = build_app(BareModel(options.bundle))
    uvicorn.run(app, port=options.port, loop="uvloop", http="httptools", access_log=False)
