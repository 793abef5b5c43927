"""Every preset is a valid configuration, and fashioniq holds the paper's numbers."""

from importlib import resources

import open_clip
import pytest

from raycd.config import Config, layers, presets
from raycd.errors import ConfigError


def preset(name: str) -> Config:
    return layers.build([layers.Layer(name, presets.load(name))])


NAMES = [
    "catalogue",
    "cirr",
    "clip4cir",
    "demo",
    "fashioniq",
    "fashioniq-h14",
    "fashioniq-siglip2",
    "paper",
    "photos",
]


def test_the_presets_are_those_of_the_documentation() -> None:
    assert presets.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_validates_and_names_itself(name: str) -> None:
    assert preset(name).preset == name


def test_fashioniq_holds_the_numbers_of_the_papers_section_4_2() -> None:
    config = preset("fashioniq")
    assert (config.encoder.name, config.encoder.pretrained) == ("RN50x4-quickgelu", "openai")
    assert (config.stage1.finetune, config.stage1.batch_size) == ("both", 64)
    assert (config.stage1.lr, config.stage1.weight_decay, config.stage1.logit_scale) == (
        2e-6,
        1e-2,
        100.0,
    )
    assert (config.stage2.head, config.stage2.batch_size, config.stage2.lr) == (
        "clip_cd",
        1024,
        2e-5,
    )
    assert (config.mine.eps_low, config.mine.eps_high, config.mine.s_max, config.mine.alpha) == (
        0.90,
        0.995,
        4,
        0.6,
    )


@pytest.mark.parametrize("name", ["paper", "clip4cir"])
def test_like_for_like_trains_on_all_of_train_and_chooses_on_val(name: str) -> None:
    config = preset(name)
    assert (config.data.selection_fraction, config.data.empty_captions) == (0.0, "keep")
    for stage, epochs in ((config.stage1, 100), (config.stage2, 300)):
        assert (stage.epochs, stage.select_on) == (epochs, "val")
        assert stage.select_by == ["recall@10", "recall@50"]
    assert (config.evaluate.protocol, config.evaluate.ks) == ("original", [10, 50])


def test_the_papers_like_for_like_preset_has_the_numbers_of_fashioniq() -> None:
    ours, theirs = preset("fashioniq"), preset("paper")
    assert theirs.mine == ours.mine
    assert theirs.encoder == ours.encoder
    same = ("batch_size", "lr", "logit_scale")
    for stage in ("stage1", "stage2"):
        for name in same:
            assert getattr(getattr(theirs, stage), name) == getattr(getattr(ours, stage), name)
    dim = 640  # of RN50x4: the Combiner's sizes are those that 0 stands for
    assert (theirs.stage2.projection_dim, theirs.stage2.hidden_dim) == (4 * dim, 8 * dim)


def test_fashioniq_is_evaluated_as_in_the_papers_section_4_1() -> None:
    config = preset("fashioniq")
    assert config.data.format == "fashioniq"
    assert config.data.categories == ["dress", "shirt", "toptee"]
    assert (config.evaluate.protocol, config.evaluate.ks) == ("original", [10, 50])


@pytest.mark.parametrize("name", ["cirr", "clip4cir", "fashioniq", "paper"])
def test_every_number_says_where_it_comes_from(name: str) -> None:
    text = resources.files(presets).joinpath(f"{name}.yaml").read_text()
    bare = [
        line
        for line in text.splitlines()
        if line.strip() and "#" not in line and not line.rstrip().endswith(":")
    ]
    assert bare == (["  format: cirr"] if name == "cirr" else [])


def test_cirr_removes_the_reference_from_the_gallery() -> None:
    config = preset("cirr")
    assert (config.data.format, config.evaluate.protocol) == ("cirr", "original-masked")


def test_demo_needs_no_data_set_and_no_network() -> None:
    config = preset("demo")
    assert (config.data.format, config.data.root, config.encoder.pretrained) == (
        "synthetic",
        "",
        "demo",
    )


def test_photos_knows_nothing_of_a_data_set_or_an_encoders_cosines() -> None:
    config = preset("photos")
    assert (config.data.format, config.mine.thresholds, config.mine.floor) == (
        "manifest",
        "quantile",
        -1,
    )


def test_only_a_catalogue_is_adapted_to_titles_or_composed_from() -> None:
    for name in NAMES:
        config = preset(name)
        assert (config.adapt.epochs > 0) == (name == "catalogue")
        assert config.compose.when == "auto"
        assert (config.data.format == "catalogue") == (name == "catalogue")


@pytest.mark.parametrize("name", ["cirr", "demo", "fashioniq", "photos"])
def test_the_presets_that_padded_before_there_was_a_choice_still_do(name: str) -> None:
    assert preset(name).encoder.padding == 1.25


@pytest.mark.parametrize("name", ["fashioniq-h14", "fashioniq-siglip2"])
def test_a_preset_with_another_encoder_says_that_it_is_ours_and_names_a_tag_that_exists(
    name: str,
) -> None:
    text = resources.files(presets).joinpath(f"{name}.yaml").read_text()
    assert text.startswith("# Ours: ")
    config, paper = preset(name), preset("fashioniq")
    assert open_clip.is_pretrained_cfg(config.encoder.name, config.encoder.pretrained)
    assert config.evaluate == paper.evaluate
    assert config.data == paper.data
    assert (config.stage2, config.stage1.lr) == (paper.stage2, paper.stage1.lr)


def test_siglip2_is_preprocessed_as_it_was_trained() -> None:
    assert preset("fashioniq-siglip2").encoder.padding is None


def test_an_unknown_preset_names_those_that_exist() -> None:
    with pytest.raises(ConfigError) as caught:
        presets.load("dmo")
    assert str(caught.value) == "unknown preset\n  got:      dmo\n  expected: one of: " + ", ".join(
        NAMES
    )


def test_a_preset_is_not_a_path() -> None:
    with pytest.raises(ConfigError, match="unknown preset"):
        presets.load("../presets/demo")
