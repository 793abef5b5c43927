"""The schema of the gallery database, and its upgrade by alembic's migrations."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from raycd.errors import GalleryError
from raycd.gallery_db import faults
from raycd.gallery_db.database import writing

VERSION_TABLE = "raycd_schema"
MIGRATIONS = Path(__file__).parent / "migrations"
_ONE_AT_A_TIME = threading.Lock()  # alembic keeps its context in a variable of its module
_LOCK = 0x72617963  # "rayc": an advisory lock of PostgreSQL


def upgrade(engine: Engine, migrations: Path = MIGRATIONS) -> None:
    """Run all migrations that the database lacks, in one transaction, once among all processes.

    Raises:
        GalleryError: The schema is of a later version, or a migration failed; nothing has changed.
    """
    config, script = _scripts(migrations)
    head = script.get_current_head()
    with engine.connect() as connection:
        if _revision(connection) == head:
            return
    with writing(engine).begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        found = _revision(connection)  # another process may have been faster
        if found == head:
            return
        known = {revision.revision for revision in script.walk_revisions()}
        if found is not None and found not in known:
            raise GalleryError(
                "the gallery's database is of a later version of raycd",
                "newer",
                got=f"schema {found}",
                expected=f"at most schema {head}",
                do="use the raycd that wrote it, or a backup from before",
            )
        config.attributes["connection"] = connection
        try:
            with _ONE_AT_A_TIME:
                command.upgrade(config, "head")
        except Exception as error:  # a migration is code and may raise anything
            if isinstance(error, SQLAlchemyError) and faults.reason(error) is not None:
                raise  # of the disk or the server: whoever called says what to do
            first = str(error).partition("\n")[0]
            raise GalleryError(
                "the gallery's database could not be brought to this version's schema; "
                "it is as it was before",
                "unmigrated",
                got=f"from schema {found} to {head}: {type(error).__name__}: {first}",
                do="keep using the raycd that wrote it, and report this",
            ) from error


def create(engine: Engine) -> None:
    """Run all migrations where there are no tables of ours yet; else `check`."""
    with engine.connect() as connection:
        is_new = _revision(connection) is None
    (upgrade if is_new else check)(engine)


def check(engine: Engine) -> None:
    """Raise GalleryError where the schema is not this version's."""
    head = _scripts(MIGRATIONS)[1].get_current_head()
    with engine.connect() as connection:
        found = _revision(connection)
    if found != head:
        raise GalleryError(
            "the gallery's database is not of this version's schema",
            "unmigrated",
            got=f"schema {found}",
            expected=f"schema {head}",
            do="start the service once: it upgrades the schema",
        )


def _scripts(migrations: Path) -> tuple[Config, ScriptDirectory]:
    config = Config()
    config.set_main_option("script_location", str(migrations))
    return config, ScriptDirectory.from_config(config)


def _revision(connection: Connection) -> str | None:
    options = {"version_table": VERSION_TABLE}
    return MigrationContext.configure(connection, opts=options).get_current_revision()
