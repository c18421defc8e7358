"""How the journal's tables came to be, step by step, by Alembic; opening a journal brings it up to date.

A step that was released is never changed: the next one is added below it.
"""

from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script.base import Script
from alembic.script.revision import RevisionMap
from sqlalchemy import Boolean, Column, Connection, Double, ForeignKey, Integer, String

from ..errors import JournalError
from .tables import SCHEMA_HEAD

_SAME = ("id", "at", "release", "label", "confidence", "abstained", "subject", "source")
"""Columns of a prediction that stay whatever happens."""

_SENTENCE = "rows of a journal are never changed or removed"


def first(op: Operations) -> None:
    """Predictions, corrections and kept images; the database itself refuses to change what was said."""
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
    guards = _guards_sqlite() if op.get_bind().dialect.name == "sqlite" else _guards_postgresql()
    for statement in guards:
        op.execute(statement)


def _guards_sqlite() -> Iterable[str]:
    changed = " OR ".join(f"NEW.{name} IS NOT OLD.{name}" for name in _SAME)
    stop = f"BEGIN SELECT RAISE(ABORT, '{_SENTENCE}'); END"
    yield f"CREATE TRIGGER predictions_stay BEFORE UPDATE ON predictions WHEN {changed} {stop}"
    yield f"CREATE TRIGGER predictions_remain BEFORE DELETE ON predictions {stop}"
    yield f"CREATE TRIGGER corrections_stay BEFORE UPDATE ON corrections {stop}"
    yield f"CREATE TRIGGER corrections_remain BEFORE DELETE ON corrections {stop}"


def _guards_postgresql() -> Iterable[str]:
    changed = " OR ".join(f"NEW.{name} IS DISTINCT FROM OLD.{name}" for name in _SAME)
    yield (
        "CREATE FUNCTION sightline_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_SENTENCE}'; END $$"
    )
    stop = "FOR EACH ROW {} EXECUTE FUNCTION sightline_refuse()"
    yield f"CREATE TRIGGER predictions_stay BEFORE UPDATE ON predictions {stop.format(f'WHEN ({changed})')}"
    yield f"CREATE TRIGGER predictions_remain BEFORE DELETE ON predictions {stop.format('')}"
    yield f"CREATE TRIGGER corrections_stay BEFORE UPDATE OR DELETE ON corrections {stop.format('')}"


MIGRATIONS: dict[str, Callable[[Operations], None]] = {"0001": first}
"""Every step by its number, in order."""


def migrate(connection: Connection, name: str) -> None:
    """Bring the tables up to date, within the connection's transaction; a current journal is only looked at.

    Raises JournalError for a journal that a newer release has changed.
    """

    def wanted(heads: tuple[str, ...], context: MigrationContext) -> list[MigrationStep]:
        steps = RevisionMap(lambda: _scripts(Operations(context)))
        left = [steps.get_revision(number) for number in MIGRATIONS if number > max(heads, default="")]
        return [MigrationStep.upgrade_from_script(steps, step) for step in left if isinstance(step, Script)]

    context = MigrationContext.configure(connection, opts={"fn": wanted})
    for head in context.get_current_heads():
        if head not in MIGRATIONS:
            raise JournalError(
                f"The journal '{name}' has schema {head}, newer than this release knows ({SCHEMA_HEAD}). "
                "Upgrade with: pip install --upgrade sightline"
            )
    context.run_migrations()


def _scripts(op: Operations) -> list[Script]:
    before = None
    found = []
    for number, step in MIGRATIONS.items():
        module: Any = ModuleType(f"migration_{number}")
        module.revision, module.down_revision, module.__doc__ = number, before, step.__doc__
        module.upgrade = partial(step, op)
        found.append(Script(module, number, __file__))
        before = number
    return found
