"""Makes the paper's Table 2: what fine-tuning, pseudo triplets and bilinear pooling add.

    python jobs/ablate.py --preset demo

Three runs stand beside the run itself: <name>-text, <name>-image and <name>-both, named after what
stage 1 fine-tunes. The variants of stage 2 are trained one after another in <name>-both, on the
same features and pseudo triplets. Starting it again repeats those, and nothing else. The table is
also written to <runs>/<name>-ablation.json.
"""

import json
import posixpath
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec

from raycd.config import Config, cli

STAGE2: Mapping[str, Mapping[str, object]] = {
    "w/o Pseudo Data": {"head": "clip_cd", "pseudo": False},
    "w/o Bilinear": {"head": "combiner", "pseudo": True},
    # The last one: what <name>-both holds in the end.
    "CLIP-CD": {"head": "clip_cd", "pseudo": True},
}


def main(options: cli.Options) -> None:
    from raycd.report.table import recall_table
    from raycd.runtime import cluster, pipeline

    config = options.config
    pipeline.run_name(config)  # a mistake ends it before Ray starts
    with cluster.connected():
        variants = dict(rows(config))
    path = posixpath.join(config.runs, f"{pipeline.run_name(config)}-ablation.json")
    table = {
        "preset": config.preset,
        "protocol": config.evaluate.protocol,
        "seed": config.seed,
        "variants": variants,
    }
    with fsspec.open(path, "w", encoding="utf-8") as file:
        json.dump(table, file, indent=1)
    print(recall_table(table))
    print(f"\ntable: {path}")


def rows(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield variant -> category -> "recall@k" -> recall, in the order of the paper's table."""
    tuned = {what: recalls(config, what, {"head": "sum"}) for what in ("text", "image")}
    fused = {name: recalls(config, "both", changes) for name, changes in STAGE2.items()}
    both = fused["CLIP-CD"]
    yield "w/o FT", both["zero_shot"]
    yield "w/ FT-Text", tuned["text"]["fine_tuned"]
    yield "w/ FT-Image", tuned["image"]["fine_tuned"]
    yield "w/ FT-Both", both["fine_tuned"]
    for name, changes in STAGE2.items():
        yield name, fused[name][str(changes["head"])]


def recalls(config: Config, finetune: str, stage2: Mapping[str, object]) -> dict[str, Any]:
    """Return the recall of each variant of one run: pre-trained, fine-tuned, fusion head."""
    from raycd.runtime import pipeline

    values = config.model_dump()
    values["name"] = f"{pipeline.run_name(config)}-{finetune}"
    values["stage1"]["finetune"] = finetune
    values["stage2"] |= stage2
    run = pipeline.run(Config.model_validate(values), until="evaluate").run
    variants: dict[str, Any] = pipeline.recorded(run, "evaluate")["variants"]
    return variants


if __name__ == "__main__":
    sys.exit(
        cli.run(
            main, prog="jobs/ablate.py", description="The paper's Table 2: what each part brings."
        )
    )
