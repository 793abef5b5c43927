"""CLIP, the fusion heads, the loss, and the bundle that training hands to serving."""
