"""Answers kept for request ids are sealed: the open ones, some of which hold API keys, go."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # A client that repeats a request from before the upgrade does its work again, or learns that it is done.
    op.execute("TRUNCATE idempotency")
