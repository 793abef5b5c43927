"""alembic's environment: `raycd.catalogue.schema` hands over the connection, in the transaction of all migrations."""

from alembic import context

from raycd.catalogue.schema import VERSION_TABLE
from raycd.catalogue.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
