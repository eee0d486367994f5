"""The tables of training."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, Identity, Index, Integer, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.tables import new_metadata, resource_table, time_type

metadata = new_metadata()

trainings = resource_table(
    metadata,
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

training_runs = resource_table(
    metadata,
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

model_projects = resource_table(
    metadata,
    "model_projects",
    Column("display_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("train_framework", Text, nullable=False),
    Column("inference_framework", Text, nullable=False),
    Column("live_version", Text, nullable=False),
    Column("code_repo_url", Text, nullable=False),
    Column("version_count", Integer, nullable=False),
)

model_versions = resource_table(
    metadata,
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

# Every state that a version had. Rows are added, never changed.
model_version_transitions = Table(
    "model_version_transitions",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("org", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("from_state", Text, nullable=False),
    Column("to_state", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("time", time_type(), nullable=False),
    Column("reason", Text, nullable=False),
)
Index("ix_model_version_transitions_model_version", model_version_transitions.c.model_version)

# Every decision of every gate: an evaluation decides a gate of a version once.
gate_decisions = Table(
    "gate_decisions",
    metadata,
    Column("model_version", Text, primary_key=True),
    Column("gate", Text, primary_key=True),
    Column("evaluation", Text, primary_key=True),
    Column("org", Text, nullable=False),
    Column("open", Boolean, nullable=False),
    Column("rule", Text, nullable=False),
    Column("figures", JSONB, nullable=False),
    Column("model_digest", Text, nullable=False),
    Column("decide_time", time_type(), nullable=False),
    Column("reason", Text, nullable=False),
)

searches = resource_table(
    metadata,
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

# A trial is written when it begins and when it ends.
search_trials = Table(
    "search_trials",
    metadata,
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
