"""The command line: the sources of settings."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raycd.config import Config, cli, flatten
from raycd.config.settings import parse_service
from raycd.errors import ConfigError
from serve.args import ServeArgs


def parse(*argv: str) -> cli.Options:
    return cli.parse(argv, prog="jobs/train.py", description="Train.")


def message(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(*argv)
    return str(caught.value)


@pytest.fixture
def my_yaml(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "my.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_no_options_give_the_defaults() -> None:
    assert parse().config == Config()
    assert parse().debug is False


def test_a_dotted_option_overrides_one_field_of_the_preset() -> None:
    config = parse("--preset", "fashioniq", "--stage2.epochs", "40", "--mine.eps_low=0.92").config
    assert (config.preset, config.stage2.epochs, config.mine.eps_low, config.stage2.lr) == (
        "fashioniq",
        40,
        0.92,
        2e-5,
    )


def test_a_file_overrides_its_preset_and_options_override_both(
    my_yaml: Callable[[str], str],
) -> None:
    path = my_yaml("preset: cirr\nstage2: {epochs: 7, k: 3}\n")
    config = parse("--config", path, "--stage2.k", "4").config
    assert (config.preset, config.data.format, config.stage2.epochs, config.stage2.k) == (
        "cirr",
        "cirr",
        7,
        4,
    )


def test_the_preset_of_the_command_line_wins_over_that_of_the_file(
    my_yaml: Callable[[str], str],
) -> None:
    config = parse("--preset", "cirr", "--config", my_yaml("preset: fashioniq\nseed: 5\n")).config
    assert (config.preset, config.evaluate.protocol, config.seed) == ("cirr", "original-masked", 5)


def test_options_that_are_not_named_do_not_override_the_preset() -> None:
    assert parse("--preset", "cirr", "--seed", "1").config.evaluate.ks == [1, 5, 10, 50]


@pytest.mark.parametrize("written", ["1,5,10", "[1,5,10]", "[1, 5, 10]"])
def test_a_list_of_numbers_is_written_with_commas_or_as_json(written: str) -> None:
    assert parse("--evaluate.ks", written).config.evaluate.ks == [1, 5, 10]


@pytest.mark.parametrize("written", ["dress,shirt", '["dress", "shirt"]'])
def test_a_list_of_names_is_written_with_commas_or_as_json(written: str) -> None:
    assert parse("--data.categories", written).config.data.categories == ["dress", "shirt"]


def test_a_negative_number_and_an_empty_text_are_values() -> None:
    config = parse("--mine.alpha", "-0.5", "--tracking.uri", "").config
    assert (config.mine.alpha, config.tracking.uri) == (-0.5, "")


@pytest.mark.parametrize(
    ("written", "value"), [("false", False), ("no", False), ("0", False), ("true", True)]
)
def test_a_switch_takes_true_or_false(written: str, value: bool) -> None:
    assert parse("--stage2.pseudo", written).config.stage2.pseudo is value


def test_a_number_stays_text_where_text_is_meant() -> None:
    assert parse("--name", "2024").config.name == "2024"


def test_variables_without_the_prefix_set_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NAME", "name", "SEED", "seed", "STAGE2__EPOCHS", "stage2.epochs", "stage2"):
        monkeypatch.setenv(name, "7")
    assert parse().config == Config()


def test_the_environment_overrides_a_file_and_options_override_both(
    monkeypatch: pytest.MonkeyPatch, my_yaml: Callable[[str], str]
) -> None:
    path = my_yaml("stage2: {epochs: 7, k: 3}\nseed: 2\n")
    monkeypatch.setenv("RAYCD_STAGE2__EPOCHS", "8")
    monkeypatch.setenv("RAYCD_STAGE2__K", "4")
    monkeypatch.setenv("RAYCD_EVALUATE__KS", "1,5")
    monkeypatch.setenv("RAYCD_DATA__CATEGORIES", '["dress"]')
    monkeypatch.setenv("RAYCD_STAGE2__PSEUDO", "false")
    config = parse("--config", path, "--stage2.k", "5").config
    assert (config.seed, config.stage2.epochs, config.stage2.k) == (2, 8, 5)
    assert (config.evaluate.ks, config.data.categories) == ([1, 5], ["dress"])
    assert config.stage2.pseudo is False


def test_a_configuration_that_is_handed_on_is_not_read_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = parse("--seed", "3").config
    monkeypatch.setenv("RAYCD_SEED", "7")
    monkeypatch.setenv("SEED", "7")
    assert Config.model_validate(config.model_dump()) == config
    assert Config() == parse("--seed", "0").config


def test_the_environment_may_name_the_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYCD_PRESET", "cirr")
    monkeypatch.setenv("RAYCD_SEED", "3")
    config = parse().config
    assert (config.preset, config.data.format, config.seed) == ("cirr", "cirr", 3)
    assert parse("--preset", "demo").config.preset == "demo"


def test_an_unknown_variable_is_refused_with_the_nearest_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYCD_STAGE2__EPOCH", "3")
    assert message() == (
        "unknown setting\n  got:      RAYCD_STAGE2__EPOCH (environment)\n"
        "  expected: did you mean RAYCD_STAGE2__EPOCHS or RAYCD_STAGE1__EPOCHS?"
    )


def test_variables_of_the_client_and_the_service_are_not_settings_of_a_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = ("MILVUS_TOKEN", "IMAGE", "PUBLISH")
    for name in ("URL", "API_KEY", "HOSTS", "SERVE__TOP_K", *others):
        monkeypatch.setenv(f"RAYCD_{name}", "7")
    assert parse().config == Config()


def test_an_impossible_value_of_the_environment_names_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYCD_EVALUATE__BATCH_SIZE", "0")
    assert "got:      0 (RAYCD_EVALUATE__BATCH_SIZE)" in message()
    monkeypatch.setenv("RAYCD_EVALUATE__KS", "[1,")
    assert message().startswith("RAYCD_EVALUATE__KS cannot be read")


@pytest.mark.parametrize(
    "uri", ["postgresql://ann:s3cret@db/mlflow", "postgresql://ann@db/mlflow?password=s3cret"]
)
def test_a_password_is_refused_as_an_option_and_taken_from_the_environment_or_a_file(
    uri: str, monkeypatch: pytest.MonkeyPatch, my_yaml: Callable[[str], str]
) -> None:
    text = message("--tracking.uri", uri)
    assert "--tracking.uri with a password" in text
    assert "set RAYCD_TRACKING__URI in the environment" in text
    assert "s3cret" not in text
    assert parse("--config", my_yaml(f"tracking: {{uri: '{uri}'}}")).config.tracking.uri == uri
    monkeypatch.setenv("RAYCD_TRACKING__URI", uri)
    assert parse().config.tracking.uri == uri


def test_help_tells_where_each_value_comes_from(
    monkeypatch: pytest.MonkeyPatch,
    my_yaml: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setenv("RAYCD_STAGE2__K", "4")
    monkeypatch.setenv("RAYCD_TRACKING__URI", "postgresql://ann:s3cret@db/mlflow")
    path = my_yaml("preset: cirr\nstage2: {epochs: 7}\n")
    with pytest.raises(SystemExit) as stop:
        parse("--config", path, "--stage2.lr", "1e-3", "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for origin in (
        "(preset cirr: original-masked)",
        f"({path}: 7)",
        "(RAYCD_STAGE2__K: 4)",
        "(command line: 1e-3)",
        "(RAYCD_TRACKING__URI: postgresql://ann:***@db/mlflow)",
        "(default: 1024)",
    ):
        assert origin in shown


def test_a_job_adds_flags_of_its_own() -> None:
    def flags(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--variants", default="all")

    options = cli.parse(
        ["--variants", "heads", "--seed", "3"], prog="jobs/ablate.py", description="", flags=flags
    )
    assert (options.flags.variants, options.config.seed) == ("heads", 3)
    assert vars(options.flags) == {"variants": "heads"}


@pytest.mark.parametrize(
    ("argument", "near"),
    [
        ("--stage2.epoch", "did you mean --stage2.epochs or --stage1.epochs?"),
        ("--stage2.epoch=3", "did you mean --stage2.epochs or --stage1.epochs?"),
        ("--mine.eps-low", "did you mean --mine.eps_low"),
        ("--epochs", "did you mean --tune.epochs or --adapt.epochs or --stage1.epochs?"),
        ("--stage2", "did you mean --stage2.k"),
        ("--zzzzz", "a setting that --help lists"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest_names(argument: str, near: str) -> None:
    text = message(argument, "3")
    assert text.startswith(
        f"unknown setting\n  got:      {argument.partition('=')[0]} (command line)\n"
    )
    assert f"expected: {near}" in text


@pytest.mark.parametrize("given", ["--top-k=5", "--top_k=5", "--max_top_k 9 --top_k 5"])
def test_the_service_takes_its_options_with_dashes_and_as_files_name_them(given: str) -> None:
    read = parse_service(ServeArgs, given.split(), prog="serve/app.py", description="Serve.")
    assert read.config.top_k == 5


def test_an_unknown_option_of_the_service_is_shown_with_dashes() -> None:
    with pytest.raises(
        ConfigError, match=r"got:      --text-cash .*\n.* did you mean --text-cache"
    ):
        parse_service(ServeArgs, ["--text_cash", "5"], prog="serve/app.py", description="Serve.")


def test_graphs_are_refused_without_a_gpu() -> None:
    with pytest.raises(ConfigError, match="it is for replicas on GPUs: got gpus 0"):
        parse_service(ServeArgs, ["--cuda-graphs"], prog="serve/app.py", description="Serve.")


def test_an_abbreviation_is_not_an_option() -> None:
    assert "unknown setting" in message("--conf", "x")


def test_an_impossible_value_names_option_range_and_origin() -> None:
    assert message("--mine.alpha", "3") == (
        "mine.alpha: impossible value\n  got:      3 (command line)\n"
        "  expected: less than or equal to 1"
    )


def test_an_impossible_value_of_a_file_names_the_file(my_yaml: Callable[[str], str]) -> None:
    path = my_yaml("evaluate: {batch_size: 0}")
    assert f"got:      0 ({path})" in message("--config", path)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--stage2.epochs"], "argument --stage2.epochs: expected one argument"),
        (["--evaluate.ks", "1", "5"], "an argument belongs to no option\n  got:      5"),
        (["--evaluate.ks", "[1,"], "an option's value cannot be read"),
        (["--evaluate.ks", ""], "evaluate.ks: impossible value"),
        (
            ["--preset", "dmo"],
            "unknown preset\n  got:      dmo\n"
            "  expected: one of: catalogue, cirr, clip4cir, demo, fashioniq",
        ),
        (["--config", "/absent.yaml"], "no such configuration file\n  got:      /absent.yaml"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_told_why(argv: list[str], expected: str) -> None:
    assert message(*argv).startswith(expected)


def test_help_lists_every_field_with_sentence_and_default_in_under_two_seconds() -> None:
    run = "cli.run(lambda o: 0, ['--help'], prog='jobs/train.py', description='Train.')"
    # Of the CPU: other programs of the machine do not count.
    told = "atexit.register(lambda: print(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])))"
    code = f"import atexit, resource; {told}; from raycd.config import cli; {run}"
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert shown.returncode == 0
    assert float(shown.stdout.split()[-1]) < 2
    assert "--mine.eps_low float" in shown.stdout
    assert "Lower similarity threshold of a substitute (inclusive). (default: 0.9)" in shown.stdout
    assert "--stage1.finetune {text,image,both,lora,none}" in shown.stdout


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out == "raycd 0.1.0\n"


@pytest.mark.parametrize(
    "module", ["raycd", "raycd.config.cli", "raycd.config.presets", "raycd.progress"]
)
def test_importing_needs_neither_torch_nor_ray(module: str) -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'numpy'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "[]\n"
    )


def test_workers_of_a_training_are_a_number_or_a_least_and_a_most(
    my_yaml: Callable[[str], str],
) -> None:
    both = {"min": 1, "max": 4}
    assert parse("--compute.train_workers", "3").config.compute.train_workers == 3
    option = ("--compute.train_workers", '{"min": 1, "max": 4}')
    file = ("--config", my_yaml("compute: {train_workers: {min: 1, max: 4}}"))
    for given in (option, file):
        config = parse(*given).config
        assert config.compute.train_workers == both
        again = flatten(config)["compute.train_workers"]
        assert parse("--compute.train_workers", str(again)).config == config.model_copy(
            update={"preset": ""}
        )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{"min": 5, "max": 4}', "a min of 5 and a max of 4: give a min of at most 4"),
        ('{"min": 0, "max": 4}', "greater than or equal to 1"),
        ('{"max": 4}', "Field required"),
        ("0", "greater than or equal to 1"),
        ("many", "a valid integer"),
    ],
)
def test_other_workers_are_refused_in_words(given: str, expected: str) -> None:
    said = message("--compute.train_workers", given)
    assert said.startswith("compute.train_workers: impossible value\n")
    assert expected in said
    assert said.count("\n") == 2
