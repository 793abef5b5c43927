"""Fusion heads: (image features, text features) -> query features. One file a head, one registry.

Every head is built from `HeadConfig` and maps un-normalised features image (B, D) and text (B, D)
to a normalised query (B, D). A head's file registers it by name; `create` is the only way in.
"""

from raycd.model.fusion.registry import HeadConfig, create, load, names, save

__all__ = ["HeadConfig", "create", "load", "names", "save"]
