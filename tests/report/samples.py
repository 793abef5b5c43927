"""What a report is made of, with texts that are hostile to HTML."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from raycd.report.page import Curve, Histogram, PseudoExample, Report, ShownQuery, ShownResult

HOSTILE = '<script>alert("x")</script> & <img src=x onerror=y> "quoted"'


def metrics() -> dict[str, Any]:
    def recalls(at_10: float, at_50: float) -> dict[str, dict[str, float]]:
        cell = {"recall@10": at_10, "recall@50": at_50}
        return {"dress": cell, "shirt": {**cell, "recall@50": 0.9}, "toptee": cell, "average": cell}

    return {
        "preset": "demo",
        "protocol": "original",
        "seed": 0,
        "variants": {
            "zero_shot": recalls(0.28104, 0.451),
            "fine_tuned": recalls(0.73, 0.88),
            "clip_cd": recalls(0.83456, 0.9),
        },
        "counts": {
            "gallery": {"dress": 1000, "shirt": 1000},
            "queries": {"dress": 500},
            "missing_images": 2,
        },
        "seconds": {"stage1": 133.2, "mine": 8.0},
    }


def garment(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Draw a coloured shape."""
    color = tuple(int(v) for v in np.random.default_rng(seed).integers(40, 220, 3))
    image = Image.new("RGB", size, "#eeeae4")
    width, height = size
    ImageDraw.Draw(image).polygon(
        [
            (0.35 * width, 0.1 * height),
            (0.65 * width, 0.1 * height),
            (0.85 * width, 0.9 * height),
            (0.15 * width, 57),
        ],
        fill=color,
    )
    return image


def sample() -> Report:
    epochs = [
        {"epoch": i, "loss": 3 / i, "seconds": 5.0, "kind": "pseudo" if i % 6 == 0 else "original"}
        | ({} if i % 6 == 0 else {"recall@10": 0.9 - 0.5 / i})
        for i in range(1, 25)
    ]
    step = {
        "candidates": 48000,
        "after_similarity": 21000,
        "after_s_max": 9100,
        "after_alpha": 3100,
    }
    groups = [
        {"side": side, "category": category, **step}
        for side in ("reference", "target")
        for category in ("dress", "shirt", "toptee")
    ]
    images = [garment(i) for i in range(12)]

    def three(first: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        return images[first], images[first + 1], images[first + 2]

    return Report(
        run="demo",
        metrics=metrics(),
        curves=[Curve("stage1", "selection", epochs[:5], 5), Curve("stage2", "val", epochs, 23)],
        mining={name: 6 * count for name, count in step.items()} | {"groups": groups},
        histograms=[
            Histogram(
                "Similarity of neighbours",
                np.random.default_rng(0).beta(8, 1.5, 4000),
                {"eps_low": 0.9, "eps_high": 0.995},
            ),
            Histogram(
                "Matching score", np.random.default_rng(1).normal(0.55, 0.1, 4000), {"alpha": 0.6}
            ),
        ],
        pseudo=[
            PseudoExample(
                "has long sleeves", *three(0), "reference", 0.951, 0.71, "good", "eps_high", 0.044
            ),
            PseudoExample(
                HOSTILE, *three(3), "target", 0.90042, 0.64, "borderline", "eps_low", 0.00042
            ),
            PseudoExample("is red", *three(6), "target", 0.93, 0.6, "refused", "alpha", 0.0),
            PseudoExample(
                "is blue", *three(6), "target", 0.93, 0.599997, "refused", "alpha", 0.000003
            ),
        ],
        queries=[
            ShownQuery(
                images[0],
                "is blue with long sleeves and has a striped pattern",
                [
                    ShownResult(images[i], f"dress-{i:05}", 0.9 - i / 50, i == 1)
                    for i in range(1, 7)
                ],
                rank=1,
                category="dress",
            ),
            ShownQuery(
                images[7],
                HOSTILE,
                [
                    ShownResult(None if i == 3 else images[i], f"B00{i}", 0.7 - i / 50)
                    for i in range(1, 6)
                ],
                rank=17,
                category="shirt",
                target=images[9],
            ),
        ],
        missing={
            "missing": 2,
            "by_reason": {"missing": 1, "truncated": 1},
            "images": {"<b>": "missing", "c": "x"},
        },
        warnings=["2 images are <missing>"],
        config="preset: demo\ntracking:\n  uri: postgresql://ann:secret@db/mlflow\n",
        versions={"raycd": "0.1.0", "torch": "2.15.0"},
    )
