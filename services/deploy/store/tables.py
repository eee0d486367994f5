"""The tables of deploy."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Identity, Index, Integer, SmallInteger, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.tables import new_metadata, resource_table, time_type

metadata = new_metadata()

deployment_configs = resource_table(
    metadata,
    "deployment_configs",
    Column("display_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
)

work_orders = resource_table(
    metadata,
    "work_orders",
    Column("deployment_config", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("model_digest", Text, nullable=False),
    Column("deployment_id", Text, nullable=False),
    Column("evidence_evaluation", Text, nullable=False),
    Column("evidence_rule", Text, nullable=False),
    Column("evidence_figures", JSONB, nullable=False),
    Column("decider", Text, nullable=False),
    Column("decide_time", time_type()),
    Column("decide_reason", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("task_uid", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("failure", Text, nullable=False),
    Column("justification", Text, nullable=False),
)

deployments = resource_table(
    metadata,
    "deployments",
    # Revisions as JSON; null where there is none.
    Column("current", JSONB(none_as_null=True)),
    Column("target", JSONB(none_as_null=True)),
    Column("ready_replicas", Integer, nullable=False),
    Column("live_time", time_type()),
)

replicas = resource_table(
    metadata,
    "replicas",
    Column("deployment", Text, nullable=False),
    Column("work_order", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("model_digest", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    Column("audience", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("actor", Text, nullable=False, unique=True),
    Column("traceparent", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("lease_expire_time", time_type()),
    Column("stopping", Boolean, nullable=False),
    Column("message", Text, nullable=False),
    Column("restarts", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("start_time", time_type()),
    Column("retry_time", time_type()),
    Column("context_length", Integer, nullable=False),
)
Index(None, work_orders.c.task_uid)
Index("ix_replicas_present", replicas.c.deployment, postgresql_where=text("state <> 'GONE'"))

# Every step of every work order and deployment, in the order in which they happened.
transitions = Table(
    "transitions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("org", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("from_state", Text, nullable=False),
    Column("to_state", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("time", time_type(), nullable=False),
    Column("model_version", Text, nullable=False),
    Column("work_order", Text, nullable=False),
    Column("reason", Text, nullable=False),
)
Index(None, transitions.c.resource, transitions.c.id)
Index(None, transitions.c.org, transitions.c.time)

# One row: how often what WatchEndpoints shows has changed. No tenant's.
endpoint_revision = Table(
    "endpoint_revision",
    metadata,
    Column("only", SmallInteger, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
)
