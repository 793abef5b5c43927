"""Fusion heads: (image features, text features) -> query features. One file a head.

Every head is built from `HeadConfig` and maps un-normalised features image (B, D) and text (B, D)
to a normalised query (B, D). `registry` lists the heads; `create` builds one by its name.
"""

from raycd.model.fusion.registry import HeadConfig, create, load, names, save

__all__ = ["HeadConfig", "create", "load", "names", "save"]
