"""Items of human work are found by what they are about."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_index("ix_work_items_subject", "work_items", ["subject"])
