"""The gallery in a search engine: Milvus has vectors, categories and attributes, and searches them.

The gallery database stays the record of truth. `pushing` brings its changes to a `collection`, of
which `view` is a state that queries see.
"""
