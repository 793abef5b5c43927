"""The sizes of encoders, from their configurations alone."""

import pytest

from raycd.model import sizes


def test_a_size_is_that_of_the_model_that_would_be_built(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = sizes.size("RN50x4-quickgelu")
    assert found.parameters == 178_300_601
    assert found.trained == found.parameters - 1  # the scale of the logits
    assert found.weights_gib == pytest.approx(178_300_601 * 4 / 2**30)
    assert found.training_gib == pytest.approx(178_300_601 * 16 / 2**30, rel=1e-6)
    assert sizes.main(["RN50x4-quickgelu"]) == 0
    assert capsys.readouterr().out.splitlines()[2] == (
        "| RN50x4-quickgelu | 178.3 M | 640 | 288 x 288, shortest, bicubic | 77 | 0.66 GiB "
        "| 2.66 GiB |"
    )


def test_a_cocas_writer_of_captions_is_loaded_but_not_trained() -> None:
    found = sizes.size("coca_ViT-B-32")
    assert found.trained < 0.7 * found.parameters


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert sizes.main(["ViT-B-33"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: encoder.name names no model\n")
    assert "ViT-B-32" in said
