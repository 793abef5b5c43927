"""The gallery database: its version, encoders, images and features."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create four tables, and the row whose lock writers hold."""
    gallery = op.create_table(
        "raycd_gallery",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("seed_digest", sa.String(64)),
        sa.Column("seed_version", sa.BigInteger),
    )
    op.bulk_insert(gallery, [{"id": 1, "version": 0}])
    op.create_table(
        "raycd_encoders",
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("dim", sa.Integer, nullable=False),
    )
    op.create_table(
        "raycd_images",
        sa.Column("image_id", sa.Text, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False, unique=True),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("categories", sa.Text, nullable=False),
        sa.Column("attributes", sa.Text, nullable=False),
        sa.Column("path", sa.Text),
    )
    op.create_table(
        "raycd_features",
        sa.Column("image_id", sa.Text, primary_key=True),
        sa.Column("fingerprint", sa.String(64), primary_key=True),
        sa.Column("feature", sa.LargeBinary, nullable=False),
    )
