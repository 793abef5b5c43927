"""The data set of a run as its stages see it: what is refused, what is held out, what is composed.

A catalogue has no train triplets. They are composed (stage `compose`) where its images have
attributes; where they have none, nothing is trained but what titles allow, and the run says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raycd import compose, progress
from raycd.compose.wording import Change
from raycd.config import Config
from raycd.data import titles
from raycd.data.read import read
from raycd.data.schema import Dataset
from raycd.data.selection import SELECTION, hold_out
from raycd.errors import ConfigError, DataError
from raycd.model import fusion
from raycd.train import invert
from raycd.train.fuse import check_hard_negatives

CATALOGUE = "catalogue"  # data.format
WITHHELD = ("instead", "withhold")  # compose.when without the train triplets that there are


def dataset(config: Config, root: str) -> Dataset:
    """Read train, selection and val of the data set at `root`; of a catalogue what there is.

    Raises:
        DataError: It cannot be read, or a split has too few triplets to learn from or to choose by.
    """
    found = without_withheld(config, root)
    needed = [("train", "train on"), ("val", "evaluate on")]
    if without_own_triplets(config, found):
        needed = []
    elif config.data.format == CATALOGUE:
        needed = needed[:1]
    for split, purpose in needed:
        if len(found.triplets_of(split)) == 0:
            raise DataError(
                f"the data set has no triplets to {purpose}",
                got=f"{len(found.triplets)} triplets, none in split {split}",
                do=f"add triplets of split {split}; a data set that is for evaluation alone takes "
                "a bundle: jobs/evaluate.py --bundle runs/NAME/bundle; one of titles and "
                "attributes is a catalogue: --preset catalogue",
            )
    _check_val(config, found)
    return held_out(found, config) if needed else found


def check_asked_once(config: Config) -> None:
    """Raise ConfigError where each query is to be asked twice, which is no two queries."""
    if config.evaluate.captions != "joined":
        raise ConfigError(
            "a comparison asks each query once",
            got=f"evaluate.captions {config.evaluate.captions}",
            do="give --evaluate.captions joined; jobs/evaluate.py asks in both orders",
        )


def unless_drawn(config: Config) -> Dataset | None:
    """Read the data set of the settings, as `dataset`; None for the demo's, still to be drawn."""
    return None if config.data.format == "synthetic" else dataset(config, config.data.root)


def without_withheld(config: Config, root: str) -> Dataset:
    """Read the data set at `root`, but for the train triplets that `compose.when` withholds."""
    found = read(config.data, root)
    if config.compose.when not in WITHHELD:
        return found
    return replace(found, triplets=found.triplets.filter(pc.field("split") != "train"))


def held_out(found: Dataset, config: Config) -> Dataset:
    """Return the data set with its selection split. Raises DataError where too little is left."""
    held = hold_out(found, config.data.selection_fraction, config.seed)
    _check_targets(held, config)
    check_hard_negatives(config, held.triplets_of("train"))
    return held


def without_own_triplets(config: Config, found: Dataset) -> bool:
    """Tell whether a data set without train triplets is one to compose from, or to serve as is."""
    when = config.compose.when
    if when in WITHHELD:
        return True
    allowed = when == "missing" or config.data.format == CATALOGUE
    return allowed and len(found.triplets_of("train")) == 0


def composes(config: Config, found: Dataset | None) -> bool:
    """Tell whether a run has the stage `compose`; None: the demo data, still to be drawn."""
    when = config.compose.when
    if found is None or when == "instead":
        return when == "instead"
    return (
        when in ("auto", "missing")
        and without_own_triplets(config, found)
        and _attributed(config, found)
    )


def composed(own: Dataset, table: pa.Table, config: Config) -> Dataset:
    """Return a data set with table COMPOSED as its train triplets, and its selection split.

    Raises DataError where they are too few.
    """
    return held_out(with_composed(own, table), config)


def check_composed(
    own: Dataset, table: pa.Table, config: Config, counts: Mapping[str, Any]
) -> None:
    """Raise DataError where table COMPOSED has too few triplets to train on."""
    try:
        composed(own, table, config)
    except DataError as error:
        raise DataError(
            "too few triplets can be composed of the attributes",
            got=f"{counts['pairs']:,} pairs of neighbours, of which "
            f"{counts['differing_in_little'] + counts['copies'] + counts['asked_in_val']:,} differ "
            f"in at most {config.compose.differences}; {counts['copies']:,} of these count as "
            f"copies; {counts['triplets']:,} triplets",
            expected="triplets of several targets",
            do="name attributes that differ alone in compose.attributes, raise "
            "compose.differences or lower compose.copies; --compose.when never trains on titles "
            "alone",
        ) from error


def with_composed(own: Dataset, table: pa.Table) -> Dataset:
    """Return a data set with table COMPOSED as its train triplets."""
    return replace(own, triplets=pa.concat_tables([own.triplets, compose.triplets(table)]))


def still_there(own: Dataset, table: pa.Table) -> pa.Table:
    """Return the rows of table COMPOSED whose images are still of their category's train split."""
    train = own.gallery.filter(pc.field("split") == "train")
    known = set(zip(train["category"].to_pylist(), train["image_id"].to_pylist(), strict=True))
    sides = [
        zip(table["category"].to_pylist(), table[side].to_pylist(), strict=True)
        for side in ("reference", "target")
    ]
    kept = [all(one in known for one in both) for both in zip(*sides, strict=True)]
    return table.filter(pa.array(kept, pa.bool_()))


def wording(config: Config) -> list[str]:
    """Return, alone in a list, the content of `compose.wording`, on which composed triplets depend.

    Raises ConfigError where it is none.
    """
    return [compose.read_phrases(config.compose.wording, config.data.root).model_dump_json()]


def fitted(config: Config, found: Dataset | None) -> Config:
    """Return the settings without what this data set has nothing for; say what that is.

    Raises ConfigError or DataError where triplets shall be composed and cannot: before anything
    is trained.
    """
    if composes(config, found):
        if found is None:
            wording(config)
        else:
            config = _checked_attributes(config, found)
    changes: dict[str, Any] = {}
    on_titles = fusion.head_class(config.stage2.head).on_titles and config.stage2.epochs > 0
    if found and (config.adapt.epochs or on_titles):
        known = titles.of_dataset(found, "train", config.data.title)
        if on_titles:
            invert.check_texts({text for own in known.values() for text in own}, config.stage2.head)
        if not known:
            progress.say("adapt is left out: no train image has a title or attributes")
            changes["adapt"] = config.adapt.model_copy(update={"epochs": 0})
        elif config.data.title not in (named := _names(found)):
            progress.say(
                f"no image has a title: data.title is {config.data.title}, and there are "
                f"{', '.join(sorted(named))}; texts are made of these"
            )
    withheld = config.compose.when == "withhold"
    if withheld or (found and without_own_triplets(config, found) and not composes(config, found)):
        last, head = {"select_on": "last"}, config.stage2.head
        untrained: dict[str, Any] = {}
        if not fusion.head_class(head).on_titles:
            # That of a bundle is served as it is
            untrained = {"epochs": 0} if config.encoder.bundle else {"head": "sum"}
            if config.encoder.bundle and config.adapt.epochs and head != "sum":
                progress.say("adapt is left out: the bundle's head knows the encoder as it is")
                changes["adapt"] = config.adapt.model_copy(update={"epochs": 0})
        progress.say(
            "there are no train triplets, and none are composed: nothing is trained on triplets, "
            f"and the head {untrained.get('head', head)} is served"
        )
        stage2 = config.stage2.model_copy(update={**untrained, **last})
        stage1 = config.stage1.model_copy(update={"finetune": "none", **last})
        changes |= {"stage1": stage1, "stage2": stage2}
    return config.model_copy(update=changes) if changes else config


def _attributed(config: Config, found: Dataset) -> bool:
    """Tell whether some image has an attribute that is not its title."""
    return bool(_names(found) - {config.data.title})


def _names(found: Dataset) -> set[str]:
    """Return the names of all attributes."""
    chunks = found.images["attributes"].chunks
    return {name for chunk in chunks for name in chunk.keys.unique().to_pylist()}


def _checked_attributes(config: Config, found: Dataset) -> Config:
    """Return the settings, which compose nothing where no attribute does and none was asked for.

    Raises:
        DataError: None does and some were.
        ConfigError: The wording lacks a phrase for a value.
    """
    rows = [dict(row) for row in found.images["attributes"].to_pylist()]
    try:
        coded = compose.encode(rows, config.compose, title=config.data.title)
    except DataError as error:
        if config.compose.when != "auto" or config.compose.attributes:
            raise
        what, got, *_ = str(error).splitlines()
        progress.say(f"{what} ({got.partition(':')[2].strip()})")
        never = config.compose.model_copy(update={"when": "never"})
        return config.model_copy(update={"compose": never})
    phrases = compose.read_phrases(config.compose.wording, config.data.root)
    is_train = pc.is_in(found.images["image_id"], value_set=pa.array(found.images_of("train")))
    train_MA = coded.code_NA[is_train.to_numpy()]
    for name, words, code_M in zip(coded.names, coded.words, train_MA.T, strict=True):
        for code in {*code_M.tolist()} - {compose.UNKNOWN}:
            phrases.options(Change(name, "", words[code]))
    return config


def _check_val(config: Config, found: Dataset) -> None:
    """Raise ConfigError where something is to be chosen on val and val has no triplets."""
    if len(found.triplets_of("val")):
        return
    named = [
        f"{s}.select_on" for s in ("stage1", "stage2") if getattr(config, s).select_on == "val"
    ]
    if config.registry.alias:
        named.append("registry.alias")
    if named:
        raise ConfigError(
            "nothing can be chosen on val: the data set has no val triplets",
            got=", ".join(named),
            do="give --stage1.select_on and --stage2.select_on selection, no --registry.alias, or "
            "add triplets of split val",
        )


def check_measured(dataset: Dataset) -> None:
    """Raise DataError where the data set has no val triplets, for what compares on them."""
    if not len(dataset.triplets_of("val")):
        raise DataError(
            "heads are compared on val, and the data set has no val triplets",
            got=f"{len(dataset.triplets)} triplets",
            do="add triplets of split val; a run without them: jobs/train.py",
        )


def _check_targets(dataset: Dataset, config: Config) -> None:
    """Refuse a train split with one target, and an empty selection split that shall choose."""
    left, held = (
        len(pc.unique(dataset.triplets_of(split)["target"])) for split in ("train", SELECTION)
    )
    chosen_on = SELECTION in (config.stage1.select_on, config.stage2.select_on)
    if left >= 2 and (held or not chosen_on):
        return
    raise DataError(
        "the train triplets have too few different targets",
        got=f"{left + held}, of which data.selection_fraction "
        f"{config.data.selection_fraction:g} holds out {held}",
        expected="at least 2 to train on, because a target is distinguished from the others"
        + (", and 1 of a category of several to choose the best epoch by" if chosen_on else ""),
        do="add triplets of other targets; where nearly all are held out, lower "
        "data.selection_fraction; to hold out none, give data.selection_fraction 0 and "
        "stage1.select_on and stage2.select_on last",
    )
