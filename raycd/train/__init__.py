"""Both training stages: one loop, and what each stage feeds it. Runs anywhere that torch runs."""
