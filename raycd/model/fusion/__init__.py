"""Fusion heads: (image features, text features) -> query features. One file a head.

Every head is a `Head`, built from a `HeadConfig`; it maps un-normalised features image (B, D) and
text (B, D) to a normalised query (B, D). `registry` lists the heads; `create` builds one by its
name.
"""

from raycd.model.fusion.head import Head, HeadBatch
from raycd.model.fusion.registry import HeadConfig, create, head_class, load, names, save

__all__ = ["Head", "HeadBatch", "HeadConfig", "create", "head_class", "load", "names", "save"]
