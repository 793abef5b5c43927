"""The search: queries, and their answers from a bundle."""
