"""The tables of the gallery database, as the migrations make them.

They may stand in a database beside others': every name begins with raycd_.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

STATE = 1  # id of the one row of raycd_gallery

gallery = Table(
    "raycd_gallery",
    metadata,
    Column("id", Integer, primary_key=True),
    Column(
        "version", BigInteger, nullable=False
    ),  # of the last change; whoever writes holds this row's lock
    Column("seed_digest", String(64)),  # of the bundle's gallery that it began with
    Column("seed_version", BigInteger),
)

encoders = Table(
    "raycd_encoders",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    Column("dim", Integer, nullable=False),  # of all its features
)

images = Table(
    "raycd_images",
    metadata,
    Column("image_id", Text, primary_key=True),
    Column("version", BigInteger, nullable=False, unique=True),  # of its last change
    Column("deleted", Boolean, nullable=False),  # a tombstone, so that replicas learn of it
    Column("categories", Text, nullable=False),  # JSON: a list
    Column("attributes", Text, nullable=False),  # JSON: an object
    Column("path", Text),  # of its picture: a path, a URI, or what `Pictures.add` returned
)

features = Table(
    "raycd_features",
    metadata,
    # Whoever replaces an image looks for its features of all encoders: the id comes first in the
    # key.
    Column("image_id", Text, primary_key=True),
    Column("fingerprint", String(64), primary_key=True),  # of the encoder
    Column("feature", LargeBinary, nullable=False),  # little-endian float32
)
