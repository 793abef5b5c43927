"""For galleries in a search engine: the identity of the database, and leases."""

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add a name that no other database has, and a table of leases."""
    op.add_column("raycd_gallery", sa.Column("uid", sa.String(32)))
    op.execute(sa.text("UPDATE raycd_gallery SET uid = :uid").bindparams(uid=uuid4().hex))
    op.create_table(
        "raycd_leases",
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", sa.Float, nullable=False),
    )
