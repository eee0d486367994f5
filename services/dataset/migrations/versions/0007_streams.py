"""Streams and the batches that wait in them."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, Text

from libs.common.db.infrastructure import create_resource_table, enable_row_level_security
from libs.common.db.tables import time_type, uid_type

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    create_resource_table(
        op,
        "streams",
        Column("roll_rows", BigInteger, nullable=False),
        Column("roll_seconds", Integer, nullable=False),
        Column("pending_rows", BigInteger, nullable=False),
        Column("pending_bytes", BigInteger, nullable=False),
        Column("roll_time", time_type()),
        Column("row_count", BigInteger, nullable=False),
        Column("roll_count", BigInteger, nullable=False),
        Column("task", Text, nullable=False),
    )
    op.create_index("ix_streams_roll_time", "streams", ["roll_time"])
    op.create_table(
        "stream_batches",
        Column("stream_uid", uid_type(), ForeignKey("streams.uid", ondelete="CASCADE"), primary_key=True),
        Column("number", BigInteger, primary_key=True),
        Column("org", Text, nullable=False),
        Column("rows", BigInteger, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("sha256", Text, nullable=False),
    )
    enable_row_level_security(op, "stream_batches")
