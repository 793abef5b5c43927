"""HFFCA and DATIR, built after the abstracts of their papers: their formulas, restated."""

import torch
from torch.nn import functional as F

from raycd.model.loss import batch_classification_loss
from tests.model.map_heads import D, batch, head, query, unit


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
