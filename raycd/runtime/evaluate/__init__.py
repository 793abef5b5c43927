"""Evaluation of a run: its stage, other data sets, a running service, the report."""
