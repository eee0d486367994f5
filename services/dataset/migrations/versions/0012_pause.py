"""Tasks can be paused."""

from __future__ import annotations

from alembic import op

from libs.common.tasks import add_pause_to_tasks

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    add_pause_to_tasks(op)
