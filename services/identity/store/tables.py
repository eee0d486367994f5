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
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

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

quotas = resource_table(
    metadata,
    "quotas",
    Column("scope", Text, nullable=False),
    Column("cpus", Float),
    Column("cpu_hours", Float),
    Column("gpus", Float),
    Column("gpu_hours", Float),
    Column("memory_bytes", BigInteger),
    Column("storage_bytes", BigInteger),
)
Index("uq_quotas_scope", quotas.c.scope, unique=True, postgresql_where=quotas.c.delete_time.is_(None))

# What jobs hold, wait for and have used; settled ones stay for thirty days. `number` is the place in the queue.
quota_reservations = Table(
    "quota_reservations",
    metadata,
    Column("org", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("number", BigInteger, Identity(always=True), nullable=False),
    Column("task", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("cpus", Float, nullable=False),
    Column("gpus", Float, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("state", Text, nullable=False),
    Column("waiting_for", Text, nullable=False),
    Column("ask_time", time_type(), nullable=False),
    Column("renew_time", time_type(), nullable=False),
    Column("start_time", time_type()),
    Column("booked_time", time_type()),
    Column("end_time", time_type()),
    Column("cpu_seconds", Float, nullable=False),
    Column("gpu_seconds", Float, nullable=False),
    Column("storage_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("kept_bytes", BigInteger, nullable=False, server_default=text("0")),
)
Index(
    "ix_quota_reservations_live",
    quota_reservations.c.org,
    quota_reservations.c.number,
    postgresql_where=quota_reservations.c.state.in_(("WAITING", "HELD")),
)
Index("ix_quota_reservations_org_number", quota_reservations.c.org, quota_reservations.c.number.desc())
# Every settlement looks for those that are old enough to be forgotten.
Index(
    "ix_quota_reservations_done",
    quota_reservations.c.org,
    quota_reservations.c.renew_time,
    postgresql_where=(quota_reservations.c.state != "HELD") & (quota_reservations.c.kept_bytes == 0),
)

# Bytes of storage that are kept of jobs that have ended, by everything that they count for.
quota_storage = Table(
    "quota_storage",
    metadata,
    Column("org", Text, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("kept_bytes", BigInteger, nullable=False),
)

# What was used in a month, by everything that it counts for.
quota_months = Table(
    "quota_months",
    metadata,
    Column("org", Text, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("month", Text, primary_key=True),
    Column("cpu_seconds", Float, nullable=False),
    Column("gpu_seconds", Float, nullable=False),
)
