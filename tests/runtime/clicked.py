"""A live gallery whose users have searched and clicked."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raycd import bundle
from raycd.feedback import users
from raycd.feedback.records import Event, LoggedSearch
from raycd.gallery_db import GalleryDatabase, events


def filled(
    folder: Path, file: Path, searches: int, support: int = 1, category: str = "dress"
) -> list[LoggedSearch]:
    """Make a live gallery of a bundle whose users have always found what they asked for at the
    third position.
    """
    manifest = bundle.verify(folder)
    rows = [
        row for row in bundle.read_gallery(folder).to_pylist() if row["categories"] == [category]
    ]
    ids = [row["image_id"] for row in rows]
    rng = np.random.default_rng(0)
    wanted = users.pairs(users.coded([dict(row["attributes"]) for row in rows]), rng, most=6)
    made: list[LoggedSearch] = []
    for n, (reference, target) in enumerate(wanted[:searches].tolist()):
        others = [one for one in ids if one not in (ids[reference], ids[target])][:3]
        for again in range(support):
            results = (*others[:2], ids[target], others[2])
            text = f"{n % 7} {' '.join(dict(rows[target]['attributes']).values())}"
            about = (f"{n:030d}{again:02d}", 1e9 + n, ids[reference], text, None, "ab" * 6, 0)
            made.append(LoggedSearch(*about, results, (2.0, 1.5, 1.0, 0.5)))
    clicks = [
        Event(f"e{one.query_id}", one.query_id, one.at, "click", one.results[2]) for one in made
    ]
    with GalleryDatabase.open(str(file)) as gallery_db:
        gallery_db.begin(
            bundle.gallery_parts(folder),
            manifest.encoder.fingerprint,
            manifest.files[bundle.GALLERY],
        )
        events.write(gallery_db, [*made, *clicks])
    return made
