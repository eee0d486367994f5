"""Searches for hyper-parameters and their trials."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Float, Integer, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import create_resource_table, enable_row_level_security

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    create_resource_table(
        op,
        "searches",
        Column("display_name", Text, nullable=False),
        Column("training", Text, nullable=False),
        Column("plan", JSONB, nullable=False),
        Column("task", Text, nullable=False),
        Column("spec", JSONB, nullable=False),
        Column("dataset_version", Text, nullable=False),
        Column("dataset_digest", Text, nullable=False),
        Column("validation_version", Text, nullable=False),
        Column("validation_digest", Text, nullable=False),
        Column("model_project", Text, nullable=False),
        Column("base_model_version", Text, nullable=False),
        Column("trial_count", Integer, nullable=False),
        Column("best_trial", Integer),
        Column("best_value", Float),
        Column("training_run", Text, nullable=False),
        Column("model_version", Text, nullable=False),
        Column("importances", JSONB, nullable=False),
    )
    op.create_table(
        "search_trials",
        Column("search", Text, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("org", Text, nullable=False),
        Column("parameters", JSONB, nullable=False),
        Column("state", Text, nullable=False),
        Column("value", Float),
        Column("rungs", JSONB, nullable=False),
        Column("results", JSONB, nullable=False),
        Column("reason", Text, nullable=False),
        Column("message", Text, nullable=False),
        Column("tokens", BigInteger, nullable=False),
        Column("seconds", Float, nullable=False),
        Column("end_seconds", Float, nullable=False),
    )
    enable_row_level_security(op, "search_trials")
