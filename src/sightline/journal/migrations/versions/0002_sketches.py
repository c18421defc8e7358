"""A sketch of each answer: class probabilities, energy, projected features, numbers of the image."""

from alembic import op
from sqlalchemy import Column, Integer, LargeBinary

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table, and a trigger that refuses updates; erasure deletes rows."""
    op.create_table(
        "sketches",
        Column("number", Integer, primary_key=True, autoincrement=True),
        Column("prediction", LargeBinary, nullable=False),
        Column("release", Integer, nullable=False),
        Column("values", LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    if op.get_bind().dialect.name == "sqlite":
        refuse = "BEGIN SELECT RAISE(ABORT, 'rows of a journal are never changed or removed'); END"
        op.execute(f"CREATE TRIGGER sketches_stay BEFORE UPDATE ON sketches {refuse}")
    else:
        op.execute(
            "CREATE TRIGGER sketches_stay BEFORE UPDATE ON sketches FOR EACH ROW EXECUTE FUNCTION sightline_refuse()"
        )
