"""The first schema of identity."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Float, Identity, Integer, LargeBinary, SmallInteger, Text

from libs.common.db.infrastructure import create_infrastructure, create_resource_table, enable_row_level_security

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    create_resource_table(
        op,
        "organizations",
        Column("display_name", Text, nullable=False),
        Column("record_content", Boolean, nullable=False),
    )
    create_resource_table(
        op,
        "departments",
        Column("display_name", Text, nullable=False),
        Column("parent_department", Text, nullable=False),
    )
    create_resource_table(
        op,
        "users",
        Column("display_name", Text, nullable=False),
        Column("email", Text, nullable=False),
        Column("role", SmallInteger, nullable=False),
        Column("department", Text, nullable=False),
        Column("disabled", Boolean, nullable=False),
    )
    create_resource_table(
        op,
        "service_accounts",
        Column("display_name", Text, nullable=False),
        Column("role", SmallInteger, nullable=False),
        Column("disabled", Boolean, nullable=False),
    )
    create_resource_table(
        op,
        "api_keys",
        Column("display_name", Text, nullable=False),
        Column("subject", Text, nullable=False),
        Column("key_id", Text, nullable=False, unique=True),
        Column("key_hash", Text, nullable=False),
        Column("expire_time", DateTime(timezone=True)),
        Column("revoke_time", DateTime(timezone=True)),
        Column("requests_per_minute", Integer, nullable=False),
        Column("tokens_per_minute", Integer, nullable=False),
    )
    create_resource_table(
        op,
        "secrets",
        Column("display_name", Text, nullable=False),
        Column("sealed", LargeBinary, nullable=False),
        Column("payload_version", BigInteger, nullable=False),
    )
    op.create_table(
        "revocations",
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("org", Text, nullable=False),
        Column("name", Text, nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_revocations_time", "revocations", ["time"])
    enable_row_level_security(op, "revocations")
    op.create_table(
        "signing_keys",
        Column("kid", Text, primary_key=True),
        Column("sealed", LargeBinary, nullable=False),
        Column("create_time", DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "spent_bootstraps",
        Column("digest", Text, primary_key=True),
        Column("time", DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "usage",
        Column("org", Text, primary_key=True),
        Column("id", Text, primary_key=True),
        Column("subject", Text, nullable=False),
        Column("api_key", Text, nullable=False),
        Column("model", Text, nullable=False),
        Column("model_version", Text, nullable=False),
        Column("prompt_tokens", BigInteger, nullable=False),
        Column("completion_tokens", BigInteger, nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("request_id", Text, nullable=False),
        Column("outcome", Text, nullable=False),
        Column("duration_seconds", Float, nullable=False),
        Column("time_to_first_token_seconds", Float, nullable=False),
    )
    op.create_index("ix_usage_org_time_id", "usage", ["org", "time", "id"])
    enable_row_level_security(op, "usage")
