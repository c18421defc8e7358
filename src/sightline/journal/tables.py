"""The journal's tables, as they are now; how they came to be is ``migrations``'."""

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
)

SCHEMA_HEAD = "0001"
"""The last migration: the one these tables come from."""

metadata = MetaData()

predictions = Table(
    "predictions",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("at", Double, nullable=False),  # seconds since 1970
    Column("release", Integer, nullable=False),
    Column("label", String(500), nullable=False),
    Column("confidence", Double, nullable=False),
    Column("abstained", Boolean, nullable=False),
    Column("sha256", String(64)),  # of the bytes received
    Column("subject", String(500)),
    Column("source", String(500)),
    Column("image", String(80)),  # name in images/
    Column("erased_at", Double),
    Index("predictions_at", "at"),
    Index("predictions_subject", "subject"),
)
"""Answers. A row is never changed, but for ``sha256``, ``image`` and ``erased_at`` when it is erased."""

corrections = Table(
    "corrections",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("prediction", String(40), ForeignKey("predictions.id"), nullable=False),
    Column("label", String(500), nullable=False),
    Column("at", Double, nullable=False),
    Column("by", String(64)),  # name of a key
    Index("corrections_prediction", "prediction"),
)
"""Right labels as they were said; of several for one answer the latest counts. A row is never changed."""

images = Table(
    "images",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("bytes", Integer, nullable=False),
)
"""Kept images, so that the quota holds for all processes together."""
