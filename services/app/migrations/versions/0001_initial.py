"""The first schema of the application layer."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Boolean, Column, Float, Integer, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import create_infrastructure, create_resource_table

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    create_resource_table(
        op,
        "prompts",
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("version_count", Integer, nullable=False),
    )
    create_resource_table(
        op,
        "prompt_versions",
        Column("system", Text, nullable=False),
        Column("template", Text, nullable=False),
        Column("variables", JSONB, nullable=False),
        Column("temperature", Float, nullable=False),
        Column("max_tokens", Integer, nullable=False),
        Column("raw", Boolean, nullable=False),
    )
    create_resource_table(
        op,
        "applications",
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("prompt_version", Text, nullable=False),
        Column("deployment", Text, nullable=False),
        Column("version_count", Integer, nullable=False),
    )
    create_resource_table(
        op,
        "application_versions",
        Column("prompt_version", Text, nullable=False),
        Column("deployment", Text, nullable=False),
    )
