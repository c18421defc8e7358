"""What people said of answers, and the queue of answers that wait for them."""

from alembic import op
from sqlalchemy import Column, Double, ForeignKey, Integer, String

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create both tables, and triggers that refuse to change or remove what people said."""
    op.create_table(
        "reviews",
        Column("number", Integer, primary_key=True, autoincrement=True),
        Column("prediction", String(40), ForeignKey("predictions.id"), nullable=False),
        Column("kind", String(20), nullable=False),
        Column("label", String(500)),
        Column("why", String(20)),
        Column("chance", Double),
        Column("at", Double, nullable=False),
        Column("by", String(64)),
    )
    op.create_index("reviews_prediction", "reviews", ["prediction"])
    op.create_table(
        "queue",
        Column("number", Integer, primary_key=True, autoincrement=True),
        Column("prediction", String(40), ForeignKey("predictions.id"), nullable=False, unique=True),
        Column("why", String(20), nullable=False),
        Column("chance", Double, nullable=False),
        Column("leader", String(40)),
        Column("at", Double, nullable=False),
        Column("leased_by", String(64)),
        Column("leased_until", Double),
        Column("done_at", Double),
    )
    if op.get_bind().dialect.name == "sqlite":
        refuse = "BEGIN SELECT RAISE(ABORT, 'rows of a journal are never changed or removed'); END"
        op.execute(f"CREATE TRIGGER reviews_stay BEFORE UPDATE ON reviews {refuse}")
        op.execute(f"CREATE TRIGGER reviews_remain BEFORE DELETE ON reviews {refuse}")
    else:
        op.execute(
            "CREATE TRIGGER reviews_stay BEFORE UPDATE OR DELETE ON reviews FOR EACH ROW "
            "EXECUTE FUNCTION sightline_refuse()"
        )
