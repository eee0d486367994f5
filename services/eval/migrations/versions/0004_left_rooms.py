"""The end of a task and that of its room in identity's ledger are written at once."""

from __future__ import annotations

from alembic import op

from libs.common.tasks import add_left_rooms

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    add_left_rooms(op)
