"""The first schema of training."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Identity, Integer, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import create_infrastructure, create_resource_table, enable_row_level_security
from libs.common.tasks import create_task_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    create_task_tables(op)
    create_resource_table(
        op,
        "trainings",
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("dataset_version", Text, nullable=False),
        Column("validation_version", Text, nullable=False),
        Column("model_project", Text, nullable=False),
        Column("base_model_version", Text, nullable=False),
        Column("spec", JSONB, nullable=False),
        Column("run_count", Integer, nullable=False),
    )
    create_resource_table(
        op,
        "training_runs",
        Column("task", Text, nullable=False),
        Column("spec", JSONB, nullable=False),
        Column("dataset_version", Text, nullable=False),
        Column("dataset_digest", Text, nullable=False),
        Column("validation_version", Text, nullable=False),
        Column("validation_digest", Text, nullable=False),
        Column("model_project", Text, nullable=False),
        Column("base_model_version", Text, nullable=False),
        Column("model_version", Text, nullable=False),
        Column("results", JSONB, nullable=False),
        Column("checkpoint", JSONB),
        Column("framework", JSONB, nullable=False),
    )
    create_resource_table(
        op,
        "model_projects",
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("train_framework", Text, nullable=False),
        Column("inference_framework", Text, nullable=False),
        Column("live_version", Text, nullable=False),
        Column("code_repo_url", Text, nullable=False),
        Column("version_count", Integer, nullable=False),
    )
    create_resource_table(
        op,
        "model_versions",
        Column("manifest_digest", Text, nullable=False),
        Column("files", JSONB, nullable=False),
        Column("training_run", Text, nullable=False),
        Column("base_model_version", Text, nullable=False),
        Column("parameter_count", BigInteger, nullable=False),
        Column("architecture", Text, nullable=False),
        Column("context_length", Integer, nullable=False),
        Column("model_card", Text, nullable=False),
        Column("gates", JSONB, nullable=False),
    )
    op.create_table(
        "model_version_transitions",
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("org", Text, nullable=False),
        Column("model_version", Text, nullable=False),
        Column("from_state", Text, nullable=False),
        Column("to_state", Text, nullable=False),
        Column("actor", Text, nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("reason", Text, nullable=False),
    )
    op.create_index("ix_model_version_transitions_model_version", "model_version_transitions", ["model_version"])
    enable_row_level_security(op, "model_version_transitions")
    op.create_table(
        "gate_decisions",
        Column("model_version", Text, primary_key=True),
        Column("gate", Text, primary_key=True),
        Column("evaluation", Text, primary_key=True),
        Column("org", Text, nullable=False),
        Column("open", Boolean, nullable=False),
        Column("rule", Text, nullable=False),
        Column("figures", JSONB, nullable=False),
        Column("model_digest", Text, nullable=False),
        Column("decide_time", DateTime(timezone=True), nullable=False),
        Column("reason", Text, nullable=False),
    )
    enable_row_level_security(op, "gate_decisions")
