"""Heads that need maps and tokens: their formulas, restated with the module's own weights.

Restated are sums over places and tokens, one place and one token at a time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raycd.errors import ConfigError
from raycd.model import fusion
from raycd.model.fusion import Head, HeadBatch
from raycd.model.fusion.clvc_net import mutual
from raycd.model.fusion.val import hinge
from raycd.model.loss import batch_classification_loss

D, L, E = 6, 5, 4
SHAPES = {"map": [8, 2, 3], "middle": [4, 4, 6], "tokens": [L, E]}
HEADS = [name for name in fusion.names() if fusion.head_class(name).needs & SHAPES.keys()]


def config(name: str, dropout: float = 0.0) -> fusion.HeadConfig:
    needs = fusion.head_class(name).needs
    extra = {need: SHAPES[need] for need in sorted(needs)}
    return fusion.HeadConfig(name, D, dropout=dropout, extra=extra)


def head(name: str, dropout: float = 0.0) -> Any:
    """Return a head all of whose weights are random: none is a zero or one that hides a part."""
    torch.manual_seed(0)
    made = fusion.create(config(name, dropout)).eval()
    for parameter in made.parameters():
        nn.init.uniform_(parameter, 0.1, 0.6) if parameter.ndim == 0 else nn.init.normal_(
            parameter, std=0.5
        )
    return made


def batch(name: str, rows: int = 4, seed: int = 1) -> HeadBatch:
    """Return triplets of random features; the second text has fewer tokens, two share a target."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape, generator=generator)

    image_BD, text_BD, target_BD = draw(D), draw(D), draw(D)
    mask = torch.ones(rows, L, dtype=torch.bool)
    mask[1, 3:] = False
    tokens = draw(L, E) * mask[..., None]
    maps = {need: draw(*SHAPES[need]) for need in ("map", "middle")}
    of_target = {need: draw(*SHAPES[need]) for need in ("map", "middle")}
    made = fusion.head_class(name)
    extra = {need: value for need, value in maps.items() if need in made.needs}
    if "tokens" in made.needs:
        extra |= {"tokens": tokens, "token_mask": mask}
    numbers = torch.arange(rows)
    if rows > 3:
        numbers[3] = 0
        target_BD[3] = target_BD[0]
    return HeadBatch(
        image_BD,
        text_BD,
        target_BD,
        numbers,
        extra,
        {need: of_target[need] for need in made.needs_of_target},
    )


def query(made: Head, given: HeadBatch) -> torch.Tensor:
    found: torch.Tensor = made(given.image_BD, given.text_BD, **given.extra)
    return found


def unit(rows: torch.Tensor) -> torch.Tensor:
    return F.normalize(rows, dim=-1)


# ---- every one of them


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


# ---- CoSMo


def conv(layer: Any, rows: torch.Tensor) -> torch.Tensor:
    """Apply a 1 x 1 convolution to the channels of one place."""
    out: torch.Tensor = layer.weight[:, :, 0, 0] @ rows
    return out if layer.bias is None else out + layer.bias


def content_attention(module: Any, X: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return A(Y, t) of one image: X is (C, P)."""
    C, P = X.shape
    size = C // module.heads
    value = torch.stack(
        [conv(module.value, conv(module.merge, torch.cat([X[:, p], t]))) for p in range(P)], 1
    )
    q, k = (
        torch.stack([conv(one, X[:, p]) for p in range(P)], 1) for one in (module.query, module.key)
    )
    w = module.text(t)
    rows = []
    for h in range(module.heads):
        own = slice(h * size, (h + 1) * size)
        of_text = torch.stack([X[own, p] @ w[own] for p in range(P)]) / size**0.5
        for_places = []
        for p in range(P):
            among = torch.stack([q[own, p] @ k[own, r] for r in range(P)]) / size**0.5
            weight = among.softmax(0) + of_text.softmax(0)
            for_places.append(sum(weight[r] * value[own, r] for r in range(P)))
        rows.append(torch.stack(for_places, 1))
    out = torch.cat(rows)
    return torch.stack([conv(module.output, out[:, p]) for p in range(P)], 1)


def equalised(layer: Any, t: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = (layer.weight * np.sqrt(2 / D)) @ t + layer.bias
    return found


@torch.inference_mode()
def test_cosmo_is_content_and_style_modulation() -> None:
    made, given = head("cosmo"), batch("cosmo")
    expected = []
    for image, t in zip(given.extra["map"].flatten(2), given.text_BD, strict=True):
        mean = image.mean(1, keepdim=True)
        deviation = ((image - mean).pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
        N = (image - mean) / deviation
        Y = N + made.weights[0] * content_attention(made.content[0], N, t)
        Z = Y + made.weights[1] * content_attention(made.content[1], Y, t)
        g_s, g_m = equalised(made.gates, t).sigmoid()[:, None].chunk(2)
        ga, be = (equalised(layer, t)[:, None] for layer in (made.gamma, made.beta))
        styled = (g_s * deviation + ga) * Z + g_m * mean + be
        expected.append(unit(made.project(styled.mean(1))))
    torch.testing.assert_close(query(made, given), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_cosmo_starts_as_published_and_classifies_with_logits_to_16() -> None:
    made: Any = fusion.create(config("cosmo"))
    assert made.weights.tolist() == [1, 1]
    assert made.gamma.bias.tolist() == [1] * 8
    assert made.beta.bias.tolist() == [0] * 8
    given = batch("cosmo")
    logits = 16 * query(made, given) @ unit(given.target_BD).T
    logits[0, 3] = logits[3, 0] = -torch.inf
    expected = F.cross_entropy(logits, torch.arange(4))
    torch.testing.assert_close(made.training_loss(given, 100.0), expected)


# ---- VAL


def composed(module: Any, X: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return f_i of one image: X is (C, H, W)."""
    C, H, W = X.shape
    spread = torch.cat([X, t[:, None, None].expand(-1, H, W)])
    V = F.conv2d(spread[None], module.fuse.weight, module.fuse.bias)[0]
    size = C // 2
    rows = V.flatten(1).T
    q, k, v = (
        torch.cat([layer(rows[:, :size]), layer(rows[:, size:])], 1)
        for layer in (module.query, module.key, module.value)
    )
    mixed = torch.zeros_like(rows)
    for own in (slice(0, size), slice(size, C)):
        for p in range(H * W):
            weight = (v[:, own] @ k[p, own] / size**0.5).softmax(0)
            mixed[p, own] = weight @ q[:, own]
    S = torch.stack([conv(module.output, row) for row in mixed], 1).view(C, H, W)
    channel = conv(module.channel, V.mean((1, 2))).sigmoid()
    kernel, bias = module.place[1].weight[0, 0], module.place[1].bias[0]
    average, place = V.mean(0), torch.zeros(H, W)
    for i in range(H):
        for j in range(W):
            for a in range(H):
                for b in range(W):
                    y, x = i + a - (H - 1) // 2, j + b - (W - 1) // 2
                    if 0 <= y < H and 0 <= x < W:
                        place[i, j] += kernel[a, b] * average[y, x]
    joint = channel[:, None, None] * (place + bias).sigmoid()
    F_i = module.residual * joint * X + module.attended * S
    found: torch.Tensor = module.project(F_i.mean((1, 2)))
    return found


@torch.inference_mode()
def test_val_composes_each_level_and_adds_them_as_units() -> None:
    made, given = head("val"), batch("val")
    expected = []
    for row, t in enumerate(given.text_BD):
        parts = [
            unit(composed(made.levels[level], given.extra[level][row], t))
            for level in ("middle", "map")
        ]
        expected.append(unit(parts[0] + parts[1]))
    torch.testing.assert_close(query(made, given), torch.stack(expected), rtol=1e-4, atol=1e-5)
    level: Any = fusion.create(config("val"))
    assert [level.levels["map"].residual.item(), level.levels["map"].attended.item()] == [1, 0]


def test_vals_hinge_takes_the_nearest_negative_beyond_the_positive() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    targets = torch.tensor([[0.96, 0.28], [1.0, 0.0], [0.6, 0.8]])
    numbers = torch.tensor([0, 1, 2])
    # Squared distances, 2 - 2 cos:   y0    y1    y2
    #                            q0  0.08  0     0.8
    #                            q1  1.44  2     0.4
    #                            q2  0.4   0.8   0
    forward = [0.0, 0.2 + 2 - 1.44, 0.0]  # q1 has nothing beyond 2: its farthest is 1.44
    backward = [0.0, 0.2 + 2 - 0.8, 0.0]  # y1 has nothing beyond 2: its farthest is 0.8
    expected = (sum(forward) + sum(backward)) / 3
    assert hinge(queries, targets, numbers).item() == pytest.approx(expected, abs=1e-6)


def test_vals_hinge_never_takes_the_same_image_as_a_negative() -> None:
    queries, targets = torch.randn(2, 3), torch.randn(1, 3).expand(2, 3)
    assert hinge(queries, targets, torch.tensor([5, 5])).item() == 0


# ---- CLVC-Net


def gem(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return the generalised mean over the second axis."""
    found: torch.Tensor = rows.clamp(min=1e-6).pow(module.p).mean(1).pow(1 / module.p)
    return found


def inception(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Return the block's branches of one image (C, H, W), or one text (C, L)."""
    pool: Callable[..., torch.Tensor] = F.avg_pool2d if rows.ndim == 3 else F.avg_pool1d
    b = module.branches
    one = b[0](rows[None])
    two = b[1][1](b[1][0](rows[None]).relu())
    three = b[2][2](b[2][1](b[2][0](rows[None]).relu()).relu())
    four = b[3][0](pool(rows[None], 3, 1, 1))
    return torch.cat([one, two, three, four], 1)[0]


@torch.inference_mode()
def test_clvc_net_composes_by_places_and_by_words() -> None:
    made, given = head("clvc_net"), batch("clvc_net")
    for row in range(2):
        X, words = given.extra["map"][row], given.extra["tokens"][row]
        words = words[given.extra["token_mask"][row]]
        K = made.local_key(X[None])[0]
        said = torch.zeros_like(K)
        for i in range(2):
            for j in range(3):
                weight = (words @ K[:, i, j] / 6**0.5).softmax(0)
                said[:, i, j] = weight @ words
        both = torch.cat([K, said])
        F_ = inception(made.local_gamma, both) * X + inception(made.local_beta, both)
        f = made.local_project(gem(made.local_pool, F_.flatten(1)))
        K = made.global_key(X[None])[0].flatten(1)
        v = torch.stack([(K * (word @ K / 4).softmax(0)).sum(1) for word in words], 1)
        both = torch.cat([words.T, v])
        G = inception(made.global_gamma, both) * v + inception(made.global_beta, both)
        g = made.global_project(gem(made.global_pool, G))
        expected = unit(unit(f) + unit(g))
        torch.testing.assert_close(query(made, given)[row], expected, rtol=1e-4, atol=1e-5)


def test_clvc_nets_loss_has_its_eight_terms() -> None:
    made, given = head("clvc_net"), batch("clvc_net")
    extra = (given.extra["map"], given.extra["tokens"], given.extra["token_mask"])
    f, F_ = made.local(*extra)
    g = made.global_(*extra)
    y = unit(given.target_BD)
    expected = (F_ - given.target_extra["map"]).pow(2).mean()
    for own, other, scale in ((f, g, made.local_scale), (g, f, made.global_scale)):
        own, other = unit(own), unit(other).detach()
        expected = expected + batch_classification_loss(own, y, given.target_B, scale.item())
        expected = expected + (own - other).pow(2).mean()
        p, q = (10 * other @ y.T).softmax(1), (10 * own @ y.T).softmax(1)
        expected = expected + (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(made.training_loss(given, 100.0), expected)


def test_a_network_does_not_teach_itself_by_what_it_teaches() -> None:
    own, other = (unit(torch.randn(3, D)).requires_grad_() for _ in range(2))
    loss = mutual(own, other.detach(), torch.randn(3, D))
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own is untyped
    assert own.grad is not None
    assert other.grad is None


# ---- SAC


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


def test_sac_starts_without_attention_and_takes_eq_4() -> None:
    fresh: Any = fusion.create(config("sac"))
    assert [fresh.levels["map"].attended.item(), fresh.levels["map"].seen.item()] == [0, 0]
    made, given = head("sac"), batch("sac")
    expected = batch_classification_loss(query(made, given), given.target_BD, given.target_B, 7.0)
    torch.testing.assert_close(made.training_loss(given, 7.0), expected)


# ---- after an abstract only


@torch.inference_mode()
def test_hffca_pools_places_by_the_text_and_words_by_the_image() -> None:
    made, given = head("hffca"), batch("hffca")
    for row in range(2):
        words = given.extra["tokens"][row][given.extra["token_mask"][row]]
        R = made.places(given.extra["map"][row].flatten(1).T)
        W = made.words(words)
        R, W = R + made.to_places(R, W, W)[0], W + made.to_words(W, R, R)[0]
        x, t = given.image_BD[row], given.text_BD[row]
        pooled = []
        for rows, guide in ((R, made.guide_of_places(t)), (W, made.guide_of_words(x))):
            weight = (rows @ guide / D**0.5).softmax(0)
            pooled.append(sum(weight[n] * rows[n] for n in range(len(rows))))
        expected = unit(x + t + made.output(torch.cat(pooled)))
        torch.testing.assert_close(query(made, given)[row], expected, rtol=1e-4, atol=1e-5)


def test_hffcas_loss_is_eq_4_and_half_of_the_captions_consistency() -> None:
    made, given = head("hffca"), batch("hffca")
    extra = (given.extra["map"], given.extra["tokens"], given.extra["token_mask"])
    found, words = made.parts(given.image_BD, given.text_BD, *extra)
    terms = [
        batch_classification_loss(one, given.target_BD, given.target_B, 7.0)
        for one in (found, made.caption(words))
    ]
    torch.testing.assert_close(made.training_loss(given, 7.0), terms[0] + 0.5 * terms[1])


def test_datirs_loss_is_eq_4_and_a_tenth_of_three_bounds_of_information() -> None:
    made, given = head("datir"), batch("datir")
    fused = made.fused(given.text_BD, **given.extra)

    def info(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        logits = 10 * unit(one) @ unit(other).T
        logits[0, 3] = logits[3, 0] = -torch.inf
        return F.cross_entropy(logits, torch.arange(4))

    difference = made.differing(given.extra["map"], given.target_extra["map"])
    expected = batch_classification_loss(
        query(made, given), given.target_BD, given.target_B, 7.0
    ) + 0.1 * info(difference, given.text_BD)
    for level in ("map", "middle"):
        seen = made.target_side[level](given.target_extra[level].flatten(2).mean(2))
        expected = expected + 0.1 * info(made.query_side[level](fused), seen)
    torch.testing.assert_close(made.training_loss(given, 7.0), expected)


def test_datirs_difference_tells_reference_and_target_apart() -> None:
    made, given = head("datir"), batch("datir")
    one, other = given.extra["map"], given.target_extra["map"]
    assert not torch.allclose(made.differing(one, other), made.differing(other, one))
