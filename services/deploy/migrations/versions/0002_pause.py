"""Tasks can be paused."""

from __future__ import annotations

from alembic import op

from libs.common.tasks import add_pause_to_tasks

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    add_pause_to_tasks(op)
