"""Heads of other packages, by the example of docs/heads.md."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from raycd import bundle
from raycd.config import Config
from raycd.errors import ConfigError, WeightsError
from raycd.model import fusion
from raycd.search.query import Query
from raycd.search.searcher import Searcher
from raycd.train.fuse import new_head
from tests import packages
from tests.model.batches import batch

DOCS = Path(__file__).parents[2] / "docs" / "heads.md"
D = 6


def example(language: str) -> str:
    """Return the one code block in a language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    code: str = found
    return code


Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Return what installs a package of one module: its name, code and lines of entry points."""
    before = set(sys.modules)

    def install(name: str, code: str, lines: str) -> None:
        points = f"[raycd.heads]\n{lines}\n"
        packages.install(monkeypatch, tmp_path / f"site-{name}", name, code, points)

    yield install
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def gated_sum(install: Install) -> None:
    """Install the example as docs/heads.md says."""
    points = tomllib.loads(example("toml"))["project"]["entry-points"]["raycd.heads"]
    [(name, value)] = points.items()
    install("gated_sum", example("python"), f"{name} = {value}")


def settings(head: str) -> Config:
    return Config.model_validate({"stage2": {"head": head}})


@pytest.mark.usefixtures("gated_sum")
def test_the_documents_example_is_a_head_by_one_file_and_one_line(tmp_path: Path) -> None:
    assert fusion.names()[-1] == "gated_sum"
    head, config = new_head(settings("gated_sum"), D)
    given = batch(5, D)
    image, text = given.image_BD, given.text_BD
    weights = head.state_dict()
    gate = torch.cat([image, text], dim=1) @ weights["gate.weight"].T + weights["gate.bias"]
    expected = F.normalize(image + torch.sigmoid(gate) * text, dim=-1)
    torch.testing.assert_close(head(image, text), expected)
    head.training_loss(given, 10.0).backward()  # type: ignore[no-untyped-call]  # torch's own
    assert all(weight.grad is not None for weight in head.parameters())
    fusion.save(head, config, tmp_path)
    assert torch.equal(fusion.load(tmp_path)[0](image, text), head(image, text))


@pytest.mark.usefixtures("gated_sum")
def test_a_bundle_serves_a_foreign_head(bundle_with_head: Callable[[str], Path]) -> None:
    searcher = Searcher(bundle.load(bundle_with_head("gated_sum")), threads=1)
    assert type(searcher.bundle.head).__name__ == "GatedSum"
    [results] = searcher.search([Query(image_id="image-4", text="is blue", top_k=3)])
    assert len(results) == 3


def test_the_documents_example_is_a_head_of_ours_with_a_line_in_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"{fusion.__name__}.gated_sum"
    module = type(sys)(name)
    exec(compile(example("python"), "gated_sum.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(fusion.registry, "HEADS", (*fusion.registry.HEADS, "gated_sum"))
    assert new_head(settings("gated_sum"), D)[0](torch.ones(1, D), torch.ones(1, D)).shape == (1, D)


@pytest.mark.usefixtures("gated_sum")
def test_an_unknown_name_lists_the_heads_of_other_packages_too() -> None:
    with pytest.raises(ConfigError, match=r"tirg, val, gated_sum\n.*did you mean gated_sum\?"):
        new_head(settings("gated_summ"), D)


def test_a_head_whose_package_is_not_installed_says_so_where_it_is_loaded(
    tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as installed:
        installed.setattr(fusion.registry, "HEADS", (*fusion.registry.HEADS, "elsewhere"))
        config = fusion.HeadConfig("elsewhere", D)
        fusion.save(fusion.create(fusion.HeadConfig("sum", D)), config, tmp_path)
    with pytest.raises(WeightsError, match=r"not installed here\n.*elsewhere(.|\n)*raycd\.heads"):
        fusion.load(tmp_path)


def test_our_own_heads_come_before_those_of_the_same_name(install: Install) -> None:
    install("impostor", "def build(config): raise AssertionError", "tirg = impostor:build")
    assert fusion.names().count("tirg") == 1
    assert type(fusion.create(fusion.HeadConfig("tirg", D))).__name__ == "Tirg"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "1 / 0",
            r"cannot be loaded\n.*ZeroDivisionError(.|\n)*expected: broken:build of broken 1.2",
        ),
        ("", r"cannot be loaded\n.*AttributeError"),
        ("def build(config): ...", r"of which class it is(.|\n)*annotate its function"),
        ("def build(config) -> int: ...", r"of which class it is\n.*returns <class 'int'>"),
        ("def build(config) -> 'Nobody': ...", r"of which class it is"),
        ("def build(config) -> 'int.Nobody': ...", r"of which class it is"),
    ],
)
def test_a_broken_head_of_another_package_is_one_clear_error(
    install: Install, code: str, message: str
) -> None:
    install("broken", code, "broken = broken:build")
    assert "broken" in fusion.names()
    with pytest.raises(ConfigError, match=message):
        new_head(settings("broken"), D)


@pytest.mark.usefixtures("gated_sum")
def test_two_packages_with_a_head_of_the_same_name_are_told_apart(install: Install) -> None:
    install("second", example("python"), "gated_sum = second:build")
    with pytest.raises(
        ConfigError, match=r"several packages add the head gated_sum\n.*second:build"
    ):
        new_head(settings("gated_sum"), D)


def test_a_head_may_import_its_configuration_for_type_checkers_alone(install: Install) -> None:
    known = "from raycd.model.fusion import Head, HeadConfig\n"
    guarded = (
        "from typing import TYPE_CHECKING\nfrom raycd.model.fusion import Head\n"
        "if TYPE_CHECKING:\n    from raycd.model.fusion import HeadConfig\n"
    )
    code = f"from __future__ import annotations\n{example('python').replace(known, guarded)}"
    assert guarded in code
    install("guarded", code, "guarded = guarded:build")
    assert fusion.head_class("guarded").__name__ == "GatedSum"
    assert new_head(settings("guarded"), D)[0](torch.ones(1, D), torch.ones(1, D)).shape == (1, D)


def test_a_head_of_tied_weights_is_saved_and_loaded(tmp_path: Path, install: Install) -> None:
    layer = "self.gate = nn.Linear(2 * config.dim, config.dim)"
    code = example("python").replace(layer, f"{layer}\n        self.same = self.gate")
    install("tied", code, "tied = tied:build")
    head, config = new_head(settings("tied"), D)
    fusion.save(head, config, tmp_path)
    loaded, _ = fusion.load(tmp_path)
    given = torch.rand(3, D), torch.rand(3, D)
    assert torch.equal(loaded(*given), head(*given))
