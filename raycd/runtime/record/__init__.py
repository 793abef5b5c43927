"""The record in MLflow: its store, runs and child runs, bundles in its registry, its own models."""
