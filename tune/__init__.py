"""The search of the augmentation on Ray Tune."""
