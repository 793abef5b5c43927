"""The fusion head that stage 2 begins with; a wrong one is refused before anything trains."""

from __future__ import annotations

from raycd.config import Config
from raycd.model import encoder as encoders
from raycd.model import fusion, maps
from raycd.model.fusion.head import WORDS
from raycd.model.tokenizer import context_length
from raycd.run import Run
from raycd.runtime.stages import beginning, context
from raycd.train.fuse import check_joint, new_head


def fresh_head(config: Config, run: Run) -> fusion.Head:
    """Build the fusion head that stage 2 of a run begins with, for its encoder.

    The stage `encoder` has run. Raises ConfigError and WeightsError where it does not fit.
    """
    known = run.record("encoder")
    assert known is not None, "encoder has not run"
    check_joint(config, known.get("composes", False))
    shapes: dict[str, list[int]] = {}
    if needed := context.needs(config) & context.CACHES.keys():
        given = known.get("gives")
        if given is None:  # an earlier version saved the encoder
            given = maps.given(encoders.load_saved(run.local("encoder") / "encoder"))
        shapes = maps.shapes_of(given, needed, config.embed.map_size)
    text = None
    if WORDS in context.needs(config):
        text = encoders.saved_model_config(run.local("encoder") / "encoder")
        shapes[WORDS] = [context_length(text)]
    head, _ = new_head(config, known["dim"], shapes, text)
    return beginning.go_on(head, config, run.local("encoder"))
