"""Storage of model versions counts in identity's ledger, and a search says what its trials need."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.tasks import add_left_rooms

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    add_left_rooms(op)
    # What was there before counts too.
    op.execute(
        "INSERT INTO left_rooms "
        "SELECT gen_random_uuid()::text, org, '', creator, name, create_time, size, false "
        "FROM (SELECT *, (SELECT sum((file->>'size')::bigint) FROM jsonb_array_elements(files) AS file) AS size "
        "FROM model_versions WHERE delete_time IS NULL) AS versions WHERE size > 0"
    )
    op.add_column("searches", Column("estimate", JSONB, nullable=False, server_default=text("'{}'::jsonb")))
