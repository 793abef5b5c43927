"""CLIP, the fusion heads and the loss."""
