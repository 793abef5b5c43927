"""SAC: its formulas, restated with the module's own weights, one position at a time."""

from typing import Any

import torch

from raycd.model import fusion
from raycd.model.loss import batch_classification_loss
from tests.model.map_heads import batch, config, conv, gem, head, query, unit


@torch.inference_mode()
def test_sac_sees_where_the_text_says_and_changes_in_two_steps() -> None:
    made, given = head("sac"), batch("sac")
    expected = []
    for row, t in enumerate(given.text_BD):
        steps = []
        for level in ("middle", "map"):
            module, X = made.levels[level], given.extra[level][row].flatten(1)
            P = X.shape[1]
            q, k, v = (
                torch.stack([conv(layer, X[:, p]) for p in range(P)], 1)
                for layer in (module.query, module.key, module.value)
            )
            mixed = torch.stack([v @ (q[:, p] @ k).softmax(0) for p in range(P)], 1)
            S = X + module.attended * mixed
            seen = (module.text.weight @ t @ S).softmax(0)
            Y = S + module.seen * S * seen
            steps.append(module.norm(module.project(gem(module.pool, Y))[None])[0])
        hidden, _ = made.change(torch.stack(steps)[None])
        change = made.output(hidden[:, -1])[0]
        expected.append(unit(change + made.text.weight @ t))
    torch.testing.assert_close(query(made, given), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_sac_keeps_its_lstm_in_fp32_where_the_rest_is_bf16() -> None:
    made, given, seen = head("sac"), batch("sac"), []
    made.change.register_forward_hook(lambda module, args, found: seen.append(found[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        query(made, given)
    assert seen == [torch.float32]


def test_sac_starts_without_attention_and_takes_eq_4() -> None:
    fresh: Any = fusion.create(config("sac"))
    assert [fresh.levels["map"].attended.item(), fresh.levels["map"].seen.item()] == [0, 0]
    made, given = head("sac"), batch("sac")
    expected = batch_classification_loss(query(made, given), given.target_BD, given.target_B, 7.0)
    torch.testing.assert_close(made.training_loss(given, 7.0), expected)
