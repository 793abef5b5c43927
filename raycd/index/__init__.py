"""The index of a served gallery: which images are nearest to a query, by cosine.

index         `Index`: building, searching, writing and reading one
choice        which of the kinds a gallery gets
flat, half, ivf, hnsw, sq8, rabitq   the kinds; structure: what they have in common
approximate, effort, blocks   FAISS's parts, the recall that is asked for, features by blocks
on_gpu        any kind's features on a GPU, where every search is exact
files         an index on the disk
"""

from raycd.index.files import FILES
from raycd.index.index import Index

__all__ = ["FILES", "Index"]
