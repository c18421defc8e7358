"""Predictions, corrections and kept images; the database itself refuses to change or remove rows.

A revision that was released is never edited: add the next one beside it.
"""

from collections.abc import Iterator

from alembic import op
from sqlalchemy import Boolean, Column, Double, ForeignKey, Integer, String

revision = "0001"
down_revision = None

_IMMUTABLE_COLUMNS = ("id", "at", "release", "label", "confidence", "abstained", "subject", "source")
"""Columns of a prediction that not even erasure changes."""

_REFUSAL = "rows of a journal are never changed or removed"


def upgrade() -> None:
    """Create the three tables and the triggers that guard them."""
    op.create_table(
        "predictions",
        Column("id", String(40), primary_key=True),
        Column("at", Double, nullable=False),
        Column("release", Integer, nullable=False),
        Column("label", String(500), nullable=False),
        Column("confidence", Double, nullable=False),
        Column("abstained", Boolean, nullable=False),
        Column("sha256", String(64)),
        Column("subject", String(500)),
        Column("source", String(500)),
        Column("image", String(80)),
        Column("erased_at", Double),
    )
    op.create_index("predictions_at", "predictions", ["at"])
    op.create_index("predictions_subject", "predictions", ["subject"])
    op.create_table(
        "corrections",
        Column("number", Integer, primary_key=True, autoincrement=True),
        Column("prediction", String(40), ForeignKey("predictions.id"), nullable=False),
        Column("label", String(500), nullable=False),
        Column("at", Double, nullable=False),
        Column("by", String(64)),
    )
    op.create_index("corrections_prediction", "corrections", ["prediction"])
    op.create_table(
        "images", Column("name", String(80), primary_key=True), Column("bytes", Integer, nullable=False)
    )
    triggers = _sqlite_triggers if op.get_bind().dialect.name == "sqlite" else _postgresql_triggers
    for statement in triggers():
        op.execute(statement)


def _sqlite_triggers() -> Iterator[str]:
    changed = " OR ".join(f"NEW.{name} IS NOT OLD.{name}" for name in _IMMUTABLE_COLUMNS)
    refuse = f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    yield f"CREATE TRIGGER predictions_stay BEFORE UPDATE ON predictions WHEN {changed} {refuse}"
    yield f"CREATE TRIGGER predictions_remain BEFORE DELETE ON predictions {refuse}"
    yield f"CREATE TRIGGER corrections_stay BEFORE UPDATE ON corrections {refuse}"
    yield f"CREATE TRIGGER corrections_remain BEFORE DELETE ON corrections {refuse}"


def _postgresql_triggers() -> Iterator[str]:
    changed = " OR ".join(f"NEW.{name} IS DISTINCT FROM OLD.{name}" for name in _IMMUTABLE_COLUMNS)
    yield (
        "CREATE FUNCTION sightline_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
    )
    refuse = "FOR EACH ROW {} EXECUTE FUNCTION sightline_refuse()"
    yield f"CREATE TRIGGER predictions_stay BEFORE UPDATE ON predictions {refuse.format(f'WHEN ({changed})')}"
    yield f"CREATE TRIGGER predictions_remain BEFORE DELETE ON predictions {refuse.format('')}"
    yield f"CREATE TRIGGER corrections_stay BEFORE UPDATE OR DELETE ON corrections {refuse.format('')}"
