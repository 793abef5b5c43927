"""Answers to queries from a bundle."""
