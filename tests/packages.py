"""Packages of others, installed for a test as pip would have them: a module and its metadata."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOY = '''
"""An encoder that knows the mean colour of a picture, and the lengths of words."""

import torch
from torch import nn

from raycd.data.preprocess import Preprocess
from raycd.model.plugins import Parts


class Words:
    files = {"words.txt": b"four"}
    padding = 0

    def __call__(self, texts):
        rows = [[len(word) for word in text.split()][:4] for text in texts]
        return torch.tensor([row + [0] * (4 - len(row)) for row in rows])

    def truncates(self, text):
        return len(text.split()) > 4


class Toy(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.visual, self.text = nn.Linear(3, dim), nn.Linear(4, dim)

    def encode_image(self, images, normalize=False):
        return self.visual(images.mean(dim=(2, 3)))

    def encode_text(self, tokens, normalize=False):
        return self.text(tokens.float())

    def set_grad_checkpointing(self, enable=True):
        pass


def load(config):
    seed, _, side = config.pretrained.partition(" ")
    torch.manual_seed(int(seed or 0))
    return build({"embed_dim": 6, "size": [int(side)] * 2 if side else [4, 6]}, Words.files)


def build(model_config, files, folder=None):
    assert files == Words.files
    size = tuple(model_config.get("size", (4, 6)))
    preprocess = Preprocess(size, (0.5,) * 3, (0.5,) * 3, resize_mode="squash")
    return Parts(Toy(model_config["embed_dim"]), Words(), preprocess, dict(model_config))
'''

HALVES = '''
"""A head without weights that does not say so."""

import torch

from raycd.model.fusion import Head, HeadConfig


class Halves(Head):
    def forward(self, image_BD, text_BD):
        return torch.nn.functional.normalize(image_BD + text_BD / 2, dim=-1)


def build(config: HeadConfig) -> Halves:
    return Halves()
'''


def install(monkeypatch: pytest.MonkeyPatch, site: Path, name: str, code: str, points: str) -> None:
    """Install the module `name` in the folder `site`; `points` are its entry points.

    They are written as entry_points.txt has them: a line [group], then lines name = value.
    """
    metadata = site / f"{name}-1.2.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{name}.py").write_text(code)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (metadata / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(site))


def closure(requirements: list[str]) -> set[str]:
    """Return the names of all installed packages that these requirements draw along."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        one = waiting.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in found:
            continue
        found.add(key)
        extras = [{"extra": extra} for extra in ("", *one.extras)]
        for need in map(Requirement, distribution(one.name).requires or []):
            if need.marker is None or any(map(need.marker.evaluate, extras)):
                waiting.append(need)
    return {name for name, _ in found}
