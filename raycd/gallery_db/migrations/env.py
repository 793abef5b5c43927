"""alembic's environment; `raycd.gallery_db.schema` gives the connection and the transaction."""

from alembic import context

from raycd.gallery_db.schema import VERSION_TABLE
from raycd.gallery_db.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
