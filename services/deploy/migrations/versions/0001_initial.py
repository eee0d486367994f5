"""The first schema of deploy."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Identity, Integer, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import create_infrastructure, create_resource_table, enable_row_level_security
from libs.common.tasks.tables import create_task_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    create_task_tables(op)
    create_resource_table(
        op,
        "deployment_configs",
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("spec", JSONB, nullable=False),
    )
    create_resource_table(
        op,
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
        Column("decide_time", DateTime(timezone=True)),
        Column("decide_reason", Text, nullable=False),
        Column("task", Text, nullable=False),
        Column("task_uid", Text, nullable=False),
        Column("deployment", Text, nullable=False),
        Column("failure", Text, nullable=False),
        Column("justification", Text, nullable=False),
    )
    create_resource_table(
        op,
        "deployments",
        Column("current", JSONB),
        Column("target", JSONB),
        Column("ready_replicas", Integer, nullable=False),
        Column("live_time", DateTime(timezone=True)),
    )
    create_resource_table(
        op,
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
        Column("lease_expire_time", DateTime(timezone=True)),
        Column("stopping", Boolean, nullable=False),
        Column("message", Text, nullable=False),
        Column("restarts", Integer, nullable=False),
        Column("failures", Integer, nullable=False),
        Column("start_time", DateTime(timezone=True)),
        Column("retry_time", DateTime(timezone=True)),
        Column("context_length", Integer, nullable=False),
    )
    op.create_index("ix_work_orders_task_uid", "work_orders", ["task_uid"])
    op.create_index("ix_replicas_present", "replicas", ["deployment"], postgresql_where=text("state <> 'GONE'"))
    op.create_table(
        "transitions",
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("org", Text, nullable=False),
        Column("resource", Text, nullable=False),
        Column("from_state", Text, nullable=False),
        Column("to_state", Text, nullable=False),
        Column("actor", Text, nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("model_version", Text, nullable=False),
        Column("work_order", Text, nullable=False),
        Column("reason", Text, nullable=False),
    )
    op.create_index("ix_transitions_resource_id", "transitions", ["resource", "id"])
    op.create_index("ix_transitions_org_time", "transitions", ["org", "time"])
    enable_row_level_security(op, "transitions")
    op.create_table(
        "endpoint_revision",
        Column("only", SmallInteger, primary_key=True, autoincrement=False),
        Column("revision", BigInteger, nullable=False),
    )
    op.execute("INSERT INTO endpoint_revision VALUES (1, 1)")
