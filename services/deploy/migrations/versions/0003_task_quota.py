"""Tasks reserve room in identity's ledger."""

from __future__ import annotations

from alembic import op

from libs.common.tasks import add_quota_to_tasks

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    add_quota_to_tasks(op)
