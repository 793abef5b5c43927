"""The tree of settings and how layers become one of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from raycd.config import Config, Section, field_types, flatten, layers, to_yaml
from raycd.config.layers import Layer
from raycd.config.settings import parse
from raycd.errors import ConfigError


def build(*values: dict[str, Any]) -> Config:
    return layers.build([Layer(f"layer {number}", value) for number, value in enumerate(values)])


def message(*values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build(*values)
    return str(caught.value)


def test_no_layer_gives_the_defaults() -> None:
    assert build() == Config()


def test_every_field_and_section_has_a_sentence() -> None:
    def bare(section: type[Section]) -> list[str]:
        found = []
        for name, field in section.model_fields.items():
            if not (field.description or "").endswith("."):
                found.append(f"{section.__name__}.{name}")
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                found += bare(field.annotation)
        return found

    assert bare(Config) == []


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 1  # type: ignore[misc]  # the mistake


def test_a_later_layer_overrides_field_by_field() -> None:
    config = build({"stage2": {"epochs": 7, "k": 3}, "seed": 1}, {"stage2": {"epochs": 9}})
    assert (config.stage2.epochs, config.stage2.k, config.seed, config.stage2.batch_size) == (
        9,
        3,
        1,
        1024,
    )


def test_a_later_list_replaces_an_earlier_one() -> None:
    assert build({"evaluate": {"ks": [1, 5]}}, {"evaluate": {"ks": [10]}}).evaluate.ks == [10]


def test_layers_that_only_together_are_possible_are_accepted() -> None:
    config = build({"mine": {"eps_low": 0.996}}, {"mine": {"eps_high": 1.0}})
    assert (config.mine.eps_low, config.mine.eps_high) == (0.996, 1.0)


def test_an_empty_section_sets_nothing() -> None:
    assert build({"stage2": None}) == Config()


@pytest.mark.parametrize("written", ["2e-6", "2.0e-6", "0.000002"])
def test_a_rate_is_a_number_however_yaml_writes_it(written: str) -> None:
    values = layers.parse_yaml(f"stage1: {{lr: {written}}}", source="my.yaml")
    assert build(values).stage1.lr == 0.000002


def test_the_yaml_of_a_configuration_gives_it_back() -> None:
    config = build(
        {
            "stage1": {"lr": 3e-7},
            "name": "a-run",
            "evaluate": {"ks": [1]},
            "stage2": {"pseudo": False},
        }
    )
    assert build(layers.parse_yaml(to_yaml(config), source="written")) == config


def test_yaml_keeps_numbers_numbers() -> None:
    assert yaml.safe_load(to_yaml(Config()))["stage1"]["lr"] == 2e-6


def test_flatten_gives_scalars_by_dotted_names() -> None:
    flat = flatten(Config())
    assert flat["stage1.lr"] == 2e-6
    assert flat["evaluate.ks"] == "10,50"
    assert flat["data.synthetic.size"] == 64
    assert flat["stage2.pseudo"] is True
    assert flat["name"] == ""
    assert list(flat) == list(field_types())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"stage2": {"epochs": "many"}},
            "stage2.epochs: impossible value|'many' (layer 0)|"
            "a valid integer, unable to parse string as an integer",
        ),
        (
            {"stage2": {"epochs": 3.5}},
            "stage2.epochs: impossible value|3.5 (layer 0)|"
            "a valid integer, got a number with a fractional part",
        ),
        (
            {"stage2": {"epochs": True}},
            "stage2.epochs: impossible value|True (layer 0)|a number",
        ),
        (
            {"stage1": {"cache_mib": True}},
            "stage1.cache_mib: impossible value|True (layer 0)|a number",
        ),
        (
            {"compute": {"train_workers": {"min": True, "max": 2}}},
            "compute.train_workers: impossible value|{'min': True, 'max': 2} (layer 0)|a number",
        ),
        (
            {"mine": {"alpha": 1.5}},
            "mine.alpha: impossible value|1.5 (layer 0)|less than or equal to 1",
        ),
        ({"stage1": {"lr": 0}}, "stage1.lr: impossible value|0 (layer 0)|greater than 0"),
        (
            {"stage1": {"lr": float("inf")}},
            "stage1.lr: impossible value|inf (layer 0)|a finite number",
        ),
        (
            {"stage2": {"dropout": 1}},
            "stage2.dropout: impossible value|1 (layer 0)|less than 1",
        ),
        (
            {"stage1": {"finetune": "txt"}},
            "stage1.finetune: impossible value|'txt' (layer 0)|"
            "'text', 'image', 'both', 'lora' or 'none'",
        ),
        (
            {"stage2": {"pseudo": "maybe"}},
            "stage2.pseudo: impossible value|'maybe' (layer 0)|"
            "a valid boolean, unable to interpret input",
        ),
        (
            {"data": {"root": 7}},
            "data.root: impossible value|7 (layer 0)|a valid string (in quotes)",
        ),
        (
            {"stage2": {"head": ""}},
            "stage2.head: impossible value|'' (layer 0)|String should have at least 1 character",
        ),
        (
            {"name": "../elsewhere"},
            "name: impossible value|'../elsewhere' (layer 0)|"
            "letters, digits, _ . and -, with a letter, a digit or _ first",
        ),
        (
            {"evaluate": {"ks": ["a", "b"]}},
            "evaluate.ks: impossible value|['a', 'b'] (layer 0)|"
            "a valid integer, unable to parse string as an integer",
        ),
        (
            {"evaluate": {"ks": []}},
            "evaluate.ks: impossible value|[] (layer 0)|"
            "List should have at least 1 item after validation, not 0",
        ),
        (
            {"data": {"synthetic": {"size": 8}}},
            "data.synthetic.size: impossible value|8 (layer 0)|greater than or equal to 16",
        ),
    ],
)
def test_an_impossible_value_is_named_with_what_is_possible(
    values: dict[str, Any], expected: str
) -> None:
    what, got, possible = expected.split("|")
    assert message(values) == f"{what}\n  got:      {got}\n  expected: {possible}"


def test_every_impossible_value_is_told_at_once() -> None:
    text = message(
        {"mine": {"alpha": 2}, "evaluate": {"batch_size": 0}, "stage1": {"epochs": True}}
    )
    assert [line for line in text.splitlines() if line.endswith("impossible value")] == [
        "stage1.epochs: impossible value",
        "mine.alpha: impossible value",
        "evaluate.batch_size: impossible value",
    ]
    assert "pydantic" not in text


def test_the_layer_that_gave_an_impossible_value_is_named() -> None:
    assert "0 (layer 1)" in message({"embed": {"batch_size": 5}}, {"embed": {"batch_size": 0}})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"mine": {"eps_low": 0.999}}, "mine.eps_low 0.999 is greater than mine.eps_high 0.995"),
        ({"mine": {"eps_low": 0.5}}, "mine.eps_low 0.5 is below mine.floor 0.8"),
        ({"mine": {"s_max": 100}}, "mine.s_max 100 is greater than mine.neighbours 64"),
        (
            {"data": {"selection_fraction": 0}},
            "stage1.select_on is selection, but data.selection_fraction is 0",
        ),
        (
            {"data": {"categories": ["dress", "dress"]}},
            "data.categories names one twice: dress, dress",
        ),
        ({"evaluate": {"ks": [5, 5]}}, "evaluate.ks names a rank twice: 5, 5"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    values: dict[str, Any], expected: str
) -> None:
    assert message(values).startswith(expected)


def test_an_unknown_field_is_refused_with_the_nearest_names() -> None:
    assert message({"stage2": {"epoch": 3}}) == (
        "unknown setting\n  got:      stage2.epoch (layer 0)\n"
        "  expected: did you mean stage2.epochs or stage1.epochs?"
    )


def test_an_unknown_section_is_refused() -> None:
    assert "got:      stage3 (layer 0)" in message({"stage3": {"epochs": 3}})


def test_a_field_without_its_section_finds_every_section_that_has_it() -> None:
    assert message({"alpha": 0.5}).endswith("did you mean mine.alpha?")


def test_a_dotted_name_in_yaml_is_told_to_be_nested() -> None:
    assert message({"stage2.epochs": 3}).endswith("expected: stage2: {epochs: ...}")


def test_a_section_that_is_no_mapping_lists_its_fields() -> None:
    assert message({"evaluate": 3}) == (
        "evaluate is a section\n  got:      3 (layer 0)\n"
        "  expected: a mapping of: protocol, ks, map_ks, captions, rerank_depth, batch_size"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stage1: {lr: 1\nseed: 2", "my.yaml, line 2, column 5: malformed YAML"),
        ("a: b: c", "my.yaml, line 1, column 5: malformed YAML"),
        (
            "seed: 1\nseed: 2",
            "my.yaml, line 2, column 1: malformed YAML\n  got:      seed stands twice",
        ),
        ("name: \x01", "my.yaml: malformed YAML"),
        ("name: 2024-13-45", "my.yaml: malformed YAML"),
        ("[" * 5000, "my.yaml: malformed YAML"),
        ("- a\n- b", "my.yaml: no settings\n  got:      a list"),
        ("only words", "my.yaml: no settings\n  got:      a str"),
        ("!!python/object/apply:os.getcwd []", "my.yaml, line 1, column 1: malformed YAML"),
    ],
)
def test_malformed_yaml_is_told_with_its_place(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        layers.parse_yaml(text, source="my.yaml")
    assert str(caught.value).startswith(expected)


def test_an_empty_yaml_sets_nothing() -> None:
    assert layers.parse_yaml("# nothing yet\n", source="my.yaml") == {}


def test_an_absent_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such configuration file\n  got: .*absent\.yaml"):
        layers.read_yaml(tmp_path / "absent.yaml")


def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        layers.read_yaml(tmp_path)


def test_variables_that_kubernetes_sets_for_a_service_are_no_settings() -> None:
    links = {
        "RAYCD_SERVE_SVC_SERVICE_HOST": "10.0.0.7",
        "RAYCD_SERVE_SVC_SERVICE_PORT": "8000",
        "RAYCD_SERVE_SVC_SERVICE_PORT_SERVE": "8000",
        "RAYCD_SERVE_SVC_PORT": "tcp://10.0.0.7:8000",
        "RAYCD_SERVE_SVC_PORT_8000_TCP": "tcp://10.0.0.7:8000",
        "RAYCD_SERVE_SVC_PORT_8000_TCP_ADDR": "10.0.0.7",
    }
    assert parse([], prog="x", description="", environment=links).config == Config()
    with pytest.raises(ConfigError, match="unknown setting"):
        parse([], prog="x", description="", environment={"RAYCD_PORT": "8000"})
