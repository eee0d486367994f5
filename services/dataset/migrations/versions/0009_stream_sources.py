"""Streams whose rows come from a source."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Text

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    for name in ("source_uri", "source_secret", "source_subject", "source_origin", "source_error", "last_rejection"):
        op.add_column("streams", Column(name, Text, nullable=False, server_default=""))
    for name in ("source_position", "rejected_count"):
        op.add_column("streams", Column(name, BigInteger, nullable=False, server_default="0"))
