"""Encoding on Ray Data: images, texts and queries into tables, or into shards."""
