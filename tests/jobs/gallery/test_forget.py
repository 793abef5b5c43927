"""Encoders whose features jobs/gallery.py forgets."""

import pytest

from raycd.gallery_db import GalleryDatabase
from raycd.gallery_db.pictures import Pictures
from tests.jobs.gallery.galleries import FEATURE, OTHER, OURS, run


def test_an_encoder_that_another_has_replaced_is_forgotten_by_the_begin_of_its_fingerprint(
    url: str, gallery_db: GalleryDatabase, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    gallery_db.add_features(
        OTHER, [(row.image_id, row.version, FEATURE) for row in gallery_db.unencoded(OTHER)]
    )
    assert run("forget", url, pictures, "--encoder", OURS[:12]) == 2
    said = capsys.readouterr().err
    assert f"nothing was forgotten yet: 2 features of encoder {OURS[:12]} would go" in said
    assert "--yes" in said
    assert gallery_db.encoders() == {OURS: 2, OTHER: 2}
    assert run("forget", url, pictures, "--encoder", OURS[:12], "--yes") == 0
    assert f"forgotten: 2 features of encoder {OURS[:12]}\n" in capsys.readouterr().out
    assert gallery_db.encoders() == {OTHER: 2}


@pytest.mark.parametrize(
    ("encoder", "message"),
    [("c", "0 encoders begin with 'c'"), ("a", "no other encoder has encoded every image")],
)
def test_no_image_is_left_without_a_feature(
    url: str,
    gallery_db: GalleryDatabase,
    pictures: Pictures,
    encoder: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = gallery_db.unencoded(OTHER)[0]
    gallery_db.add_features(OTHER, [(row.image_id, row.version, FEATURE)])
    assert run("forget", url, pictures, "--encoder", encoder, "--yes") == 2
    assert message in capsys.readouterr().err
    assert gallery_db.encoders() == {OURS: 2, OTHER: 1}
