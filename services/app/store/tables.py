"""The tables of the application layer."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Integer, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.tables import new_metadata, resource_table

metadata = new_metadata()

prompts = resource_table(
    metadata,
    "prompts",
    Column("display_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("version_count", Integer, nullable=False),
)

prompt_versions = resource_table(
    metadata,
    "prompt_versions",
    Column("system", Text, nullable=False),
    Column("template", Text, nullable=False),
    Column("variables", JSONB, nullable=False),
    Column("temperature", Float, nullable=False),
    Column("max_tokens", Integer, nullable=False),
    Column("raw", Boolean, nullable=False),
)

applications = resource_table(
    metadata,
    "applications",
    Column("display_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("prompt_version", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("version_count", Integer, nullable=False),
)

application_versions = resource_table(
    metadata,
    "application_versions",
    Column("prompt_version", Text, nullable=False),
    Column("deployment", Text, nullable=False),
)
