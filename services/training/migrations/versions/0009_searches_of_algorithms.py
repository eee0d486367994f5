"""Searches over the parameters of algorithms of the catalogue."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text, text
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("searches", Column("algorithm_version", Text, nullable=False, server_default=text("''")))
    op.add_column("searches", Column("parameters", JSONB, nullable=False, server_default=text("'{}'")))
