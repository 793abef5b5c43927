"""Training on Ray Train: workers, checkpoints, failures, and what is told while a stage runs."""
