"""What tasks have written and need no more."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

from libs.common.db.infrastructure import enable_row_level_security
from libs.common.db.tables import time_type, uid_type

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "given_up",
        Column("task_uid", uid_type(), primary_key=True),
        Column("manifest_digest", Text, primary_key=True),
        Column("org", Text, nullable=False),
        Column("create_time", time_type(), nullable=False),
    )
    enable_row_level_security(op, "given_up")
