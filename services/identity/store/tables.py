"""The tables of identity."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
)

from libs.common.db.tables import new_metadata, resource_table, time_type

metadata = new_metadata()

organizations = resource_table(
    metadata,
    "organizations",
    Column("display_name", Text, nullable=False),
    Column("record_content", Boolean, nullable=False),
)

departments = resource_table(
    metadata,
    "departments",
    Column("display_name", Text, nullable=False),
    Column("parent_department", Text, nullable=False),
)

users = resource_table(
    metadata,
    "users",
    Column("display_name", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("role", SmallInteger, nullable=False),
    Column("department", Text, nullable=False),
    Column("disabled", Boolean, nullable=False),
)

service_accounts = resource_table(
    metadata,
    "service_accounts",
    Column("display_name", Text, nullable=False),
    Column("role", SmallInteger, nullable=False),
    Column("disabled", Boolean, nullable=False),
)

api_keys = resource_table(
    metadata,
    "api_keys",
    Column("display_name", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("key_id", Text, nullable=False, unique=True),
    Column("key_hash", Text, nullable=False),
    Column("expire_time", time_type()),
    Column("revoke_time", time_type()),
    Column("requests_per_minute", Integer, nullable=False),
    Column("tokens_per_minute", Integer, nullable=False),
)

secrets = resource_table(
    metadata,
    "secrets",
    Column("display_name", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("payload_version", BigInteger, nullable=False),
)

# What must be refused although its token has not expired: rows older than the life of a token are of no use.
revocations = Table(
    "revocations",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("org", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("time", time_type(), nullable=False),
)
Index(None, revocations.c.time)

# Keys that sign tokens, sealed. No tenant's: only identity itself reads them.
signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("create_time", time_type(), nullable=False),
)

# Digests of bootstrap tokens that were spent.
spent_bootstraps = Table(
    "spent_bootstraps",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("time", time_type(), nullable=False),
)

usage = Table(
    "usage",
    metadata,
    Column("org", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("api_key", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("time", time_type(), nullable=False),
    Column("request_id", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("duration_seconds", Float, nullable=False),
    Column("time_to_first_token_seconds", Float, nullable=False),
)
Index(None, usage.c.org, usage.c.time.desc(), usage.c.id)
