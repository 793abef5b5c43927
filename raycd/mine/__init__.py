"""Similarity-based pseudo triplets (paper 3.2.3).

features -> neighbours -> candidates with scores -> pseudo triplets

    rows = of_triplets(image_ids, triplets)              # ids -> rows of the feature matrix
    pools = make_pools(mine.pool, gallery, rows)         # where substitutes may come from
    found = find_neighbours(image_ND, pools, mine)       # eq. 8, and eq. 9 at its loosest
    table = make_candidates(rows, found, image_ND, text_TD, encoder=fingerprint)
    pseudo, counts = filter_candidates(table, **resolve(table, mine))  # milliseconds

`make_candidates` makes every replacement with its matching score. Only the last line depends on the
thresholds, so trying others needs no feature. Arrays in, tables out: no Ray, no files.
`raycd.runtime.mining` finds the neighbours and makes the candidates on a cluster, with equal
results.

Letters: N images with features, T triplets, Q query images, P images of a pool, D feature size, S
neighbours kept, C candidates, B rows of a batch. A "row" is a row of the feature matrix unless
something else is said.
"""

from raycd.mine.candidates import CANDIDATES, Score, make_candidates, matching_scores
from raycd.mine.counts import Counts, summary, warnings
from raycd.mine.eligible import eligible
from raycd.mine.examples import choose_examples
from raycd.mine.filter import filter_candidates
from raycd.mine.neighbours import (
    LARGEST,
    NEIGHBOURS,
    Lists,
    find_neighbours,
    normalise,
    recall,
    sample,
)
from raycd.mine.pools import Pool, TripletRows, make_pools, of_triplets
from raycd.mine.search import FAISS_GPU, NeighbourSearch, on_gpu
from raycd.mine.shards import (
    Searched,
    Shard,
    Visit,
    low_recall,
    make_shards,
    row_bytes,
    searched,
    searched_line,
    visits,
)
from raycd.mine.thresholds import Thresholds, resolve
from raycd.mine.thresholds import line as thresholds_line

__all__ = [
    "CANDIDATES",
    "FAISS_GPU",
    "LARGEST",
    "NEIGHBOURS",
    "Counts",
    "Lists",
    "NeighbourSearch",
    "Pool",
    "Score",
    "Searched",
    "Shard",
    "Thresholds",
    "TripletRows",
    "Visit",
    "choose_examples",
    "eligible",
    "filter_candidates",
    "find_neighbours",
    "low_recall",
    "make_candidates",
    "make_pools",
    "make_shards",
    "matching_scores",
    "normalise",
    "of_triplets",
    "on_gpu",
    "recall",
    "resolve",
    "row_bytes",
    "sample",
    "searched",
    "searched_line",
    "summary",
    "thresholds_line",
    "visits",
    "warnings",
]
