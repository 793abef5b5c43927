"""Triplets composed from the attributes of images that look alike.

    coded = encode(attributes_N, settings, title="title")    # values as numbers
    pairs, counts = draw(coded, neighbours, settings, seed)  # of table raycd.mine.NEIGHBOURS
    table = write(pairs, coded, image_ids, phrases, seed=seed, encoder=fingerprint)

Two images that share most attributes and differ in one or two are a reference and a target, and
what differs is the modification text. Of an image's nearest neighbours some pairs are drawn, those
of rare values sooner. Arrays and tables in, a table out: no Ray, no files.
`raycd.runtime.stages.catalogue` finds the neighbours on a cluster.

Letters: N images, A attributes, P pairs of a block, C pairs that were drawn, in both directions.
"""

from raycd.compose.coded import UNKNOWN, Coded, encode
from raycd.compose.pairs import Pairs, draw
from raycd.compose.table import COMPOSED, triplets, write
from raycd.compose.wording import Phrases, read_phrases

__all__ = [
    "COMPOSED",
    "UNKNOWN",
    "Coded",
    "Pairs",
    "Phrases",
    "draw",
    "encode",
    "read_phrases",
    "triplets",
    "write",
]
