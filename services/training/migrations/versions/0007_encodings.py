"""What runs have encoded, for later ones on the same version."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

from libs.common.db.infrastructure import enable_row_level_security
from libs.common.db.tables import time_type

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "encodings",
        Column("org", Text, primary_key=True),
        Column("key", Text, primary_key=True),
        Column("dataset_digest", Text, nullable=False),
        Column("manifest_digest", Text, nullable=False),
        Column("create_time", time_type(), nullable=False),
        Column("use_time", time_type(), nullable=False),
    )
    op.create_index("ix_encodings_org_dataset_digest", "encodings", ["org", "dataset_digest"])
    enable_row_level_security(op, "encodings")
