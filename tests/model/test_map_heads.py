"""What holds for every head that needs maps or tokens; its formulas are in a file of its own."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from raycd.errors import ConfigError
from raycd.model import fusion
from tests.model.map_heads import HEADS, D, batch, config, head, query, unit


def test_there_are_the_six_of_table_1() -> None:
    assert {"clvc_net", "cosmo", "datir", "hffca", "sac", "val"} <= set(HEADS)


@pytest.mark.parametrize("name", HEADS)
def test_queries_are_normalised_and_each_row_is_of_its_own_triplet(name: str) -> None:
    made, given = head(name), batch(name)
    found = query(made, given)
    assert found.shape == (4, D)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))
    one = {key: value[1:2] for key, value in given.extra.items()}
    alone = made(given.image_BD[1:2], given.text_BD[1:2], **one)
    torch.testing.assert_close(alone, found[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in HEADS if "tokens" in config(name).extra])
def test_padding_of_a_text_changes_nothing(name: str) -> None:
    made, given = head(name), batch(name)
    more = dict(given.extra)
    more["tokens"] = F.pad(given.extra["tokens"], (0, 0, 0, 3), value=9.0)
    more["token_mask"] = F.pad(given.extra["token_mask"], (0, 3))
    found = made(given.image_BD, given.text_BD, **more)
    torch.testing.assert_close(found, query(made, given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_every_weight_gets_a_gradient_of_the_loss(name: str) -> None:
    made, given = head(name).train(), batch(name, rows=8)
    made.training_loss(given, 10.0).backward()
    without = [
        key
        for key, value in made.named_parameters()
        if value.grad is None or not value.grad.abs().max() > 0
    ]
    assert without == []


@pytest.mark.parametrize("name", HEADS)
def test_some_triplets_are_learned_by_heart(name: str) -> None:
    torch.manual_seed(0)
    made, given = fusion.create(config(name)).train(), batch(name, rows=10)
    adam = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(150):
        adam.zero_grad()
        loss = made.training_loss(given, 10.0)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
        adam.step()
    cosine = query(made, given) @ unit(given.target_BD).T
    best = given.target_B[cosine.argmax(dim=1)]
    assert (best == given.target_B).float().mean() >= 0.9


@pytest.mark.parametrize("name", HEADS)
def test_a_saved_head_gives_the_same_queries(name: str, tmp_path: Path) -> None:
    made, given = head(name), batch(name)
    fusion.save(made, config(name), tmp_path)
    loaded, settings = fusion.load(tmp_path, dim=D)
    assert settings == config(name)
    assert torch.equal(query(loaded, given), query(made, given))


@pytest.mark.parametrize("name", HEADS)
def test_a_head_without_the_shapes_of_its_needs_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="needs more of the encoder than pooled features"):
        fusion.create(fusion.HeadConfig(name, D))
