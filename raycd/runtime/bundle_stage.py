"""The last stage: encoder, head, gallery and index become what is served."""

from __future__ import annotations

from raycd import bundle
from raycd.data.captions import example_texts
from raycd.model import encoder as encoders
from raycd.model import fusion
from raycd.run import Writing
from raycd.runtime.stages import IMAGES, Context


def bundle_up(context: Context, writing: Writing) -> None:
    """Put encoder, head, gallery and index together for serving. The gallery is val's."""
    tuned = encoders.load_saved(context.run.local("stage1") / "encoder")
    head, head_config = fusion.load(context.run.local("stage2") / "head", dim=tuned.dim)
    categories: dict[str, list[str]] = {}
    for row in context.dataset.gallery.to_pylist():
        if row["split"] == "val":
            categories.setdefault(row["image_id"], []).append(row["category"])
    images = context.stored("embed", IMAGES).features(list(categories))
    ids: list[str] = images.keys.to_pylist()
    known = {row["image_id"]: row for row in context.dataset.images.to_pylist()}
    gallery = bundle.gallery_table(
        ids,
        [categories[key] for key in ids],
        [known[key]["path"] for key in ids],
        images.values.numpy(),
        tuned.fingerprint(),
        attributes=[dict(known[key]["attributes"]) for key in ids],
        run=context.run.root,
    )
    recalls = context.recorded("evaluate", "variants")[head_config.name]["average"]
    metrics = {"protocol": context.config.evaluate.protocol, **recalls}
    texts = example_texts(
        context.dataset.triplets_of("train")["captions"].to_pylist(), context.config.seed
    )
    manifest = bundle.write(
        writing.folder,
        tuned,
        head,
        head_config,
        gallery,
        context.config,
        metrics,
        example_texts=texts,
        extras=context.extras(head.needs),
    )
    writing.record |= {
        "counts": {"gallery": len(ids)},
        "digest": manifest.digest,
        "index": manifest.index.model_dump(),
    }
