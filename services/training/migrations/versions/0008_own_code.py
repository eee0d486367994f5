"""Own code of algorithms: a draft beside each algorithm, and what a version was published as."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, text
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("algorithms", Column("draft", JSONB, nullable=False, server_default=text("'{}'")))
    op.alter_column("algorithms", "draft", server_default=None)
    op.add_column("algorithm_versions", Column("program", JSONB))
