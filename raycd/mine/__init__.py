"""Similarity-based pseudo triplets (paper 3.2.3).

features -> neighbours -> candidates with scores -> pseudo triplets

    rows = of_triplets(image_ids, triplets)              # ids -> rows of the feature matrix
    pools = make_pools(mine.pool, gallery, rows)         # where substitutes may come from
    found = find_neighbours(image_ND, pools, mine)       # eq. 8, and eq. 9 at its loosest
    score = partial(matching_scores, image_ND, text_TD)  # of eq. 3's query with the target
    table = make_candidates(rows, found, score, encoder=fingerprint)
    pseudo, counts = filter_candidates(table, **resolve(table, mine))  # milliseconds

Only the last line depends on the thresholds, so trying others needs no feature. Arrays in, tables
out: no Ray, no files. `raycd.runtime.mining` finds the neighbours and makes the candidates on a
cluster, with equal results.

What each guarantee costs, where FAISS's `IndexFlatIP.search` costs 100 (one thread, images of 640
numbers, 64 neighbours of each, no floor). Products in bf16, where the CPU has them, give 35 back:

no image that counts is missed   nothing to speak of: 10 more are proposed, by bf16 73 more; to a
                                 query that ties with thousands, all these (proposals.py)
exact, the same on every device  10, by bf16 21: float64 of what is proposed (search.py)
ties to the lower row            the sorted keys of search.py, in those 10 or 21
memory within worker_mib         a merge for each shard (neighbours.py)
HNSW, IVF, measured recall       exact search of recall_sample queries
several pools, held out images   pools.py; each pool is searched by itself
no known pair, funnel            candidates.py, filter.py: milliseconds
any number of workers            runtime/mining.py: the features once in Ray's object store

Letters: N images with features, T triplets, Q query images, P images of a pool, D feature size, S
neighbours kept, C candidates, U uses of an image by a triplet, B rows of a batch. A "row" is a row
of the feature matrix unless something else is said.
"""

from raycd.mine.candidates import CANDIDATES, make_candidates, matching_scores
from raycd.mine.filter import (
    Counts,
    Thresholds,
    eligible,
    filter_candidates,
    resolve,
)
from raycd.mine.neighbours import (
    NEIGHBOURS,
    Searched,
    find_neighbours,
    make_shards,
    recall,
    sample,
    searched,
)
from raycd.mine.pools import Pool, TripletRows, make_pools, of_triplets

__all__ = [
    "CANDIDATES",
    "NEIGHBOURS",
    "Counts",
    "Pool",
    "Searched",
    "Thresholds",
    "TripletRows",
    "eligible",
    "filter_candidates",
    "find_neighbours",
    "make_candidates",
    "make_pools",
    "make_shards",
    "matching_scores",
    "of_triplets",
    "recall",
    "resolve",
    "sample",
    "searched",
]
