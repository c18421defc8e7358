"""Alembic's environment: runs the revisions on the connection that ``database.migrate`` hands in."""

from alembic import context

from sightline.journal.database import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
