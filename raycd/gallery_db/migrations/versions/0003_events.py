"""For feedback: searches with what they showed, and what people did with it."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create two tables, and the indexes by which they are joined and by which they expire."""
    op.create_table(
        "raycd_searches",
        sa.Column("query_id", sa.String(32), primary_key=True),
        sa.Column("at", sa.Float, nullable=False, index=True),
        sa.Column("reference", sa.Text),
        sa.Column("text", sa.Text),
        sa.Column("text_hash", sa.String(64)),
        sa.Column("bundle", sa.String(12), nullable=False),
        sa.Column("first", sa.Integer, nullable=False),
        sa.Column("results", sa.Text, nullable=False),
        sa.Column("explored", sa.Text),
    )
    op.create_table(
        "raycd_events",
        sa.Column("event_id", sa.String(64), primary_key=True),
        sa.Column("query_id", sa.String(32), nullable=False),
        sa.Column("at", sa.Float, nullable=False, index=True),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("image_id", sa.Text, nullable=False),
    )
