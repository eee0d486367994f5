"""The tables of training."""

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
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.tables import new_metadata, resource_table, time_type, uid_type

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
    Column("algorithm_version", Text, nullable=False),
    Column("parameters", JSONB, nullable=False),
    Column("task", Text, nullable=False),
    Column("outside", Boolean, nullable=False),
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
    Column("algorithm_version", Text, nullable=False),
    Column("parameters", JSONB, nullable=False),
    # What the run costs; empty: not known.
    Column("estimate", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("actual", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("outside", Boolean, nullable=False),
)

algorithms = resource_table(
    metadata,
    "algorithms",
    Column("display_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("visibility", SmallInteger, nullable=False),
    Column("version_count", Integer, nullable=False),
    Column("draft", JSONB, nullable=False),
)

algorithm_versions = resource_table(
    metadata,
    "algorithm_versions",
    Column("base_version", Text, nullable=False),
    Column("parameters", JSONB, nullable=False),
    Column("fixed", JSONB, nullable=False),
    # None: the code of its base.
    Column("program", JSONB(none_as_null=True)),
)
Index("ix_training_runs_model_project", training_runs.c.model_project, training_runs.c.create_time)

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
    Column("metrics_url", Text, nullable=False),
    Column("model_uri", Text, nullable=False),
    # None: the default one.
    Column("life_cycle", JSONB(none_as_null=True)),
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
    Column("stage", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("licence", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("signature", JSONB(none_as_null=True)),
)

# Every stage that a version had. Rows are added; the database refuses to change one.
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
    Column("from_stage", Text, nullable=False),
    Column("to_stage", Text, nullable=False),
)
Index("ix_model_version_transitions_model_version", model_version_transitions.c.model_version)

model_aliases = resource_table(metadata, "model_aliases", Column("model_version", Text, nullable=False))

# Every move of an alias. Rows are added; the database refuses to change one.
model_alias_changes = Table(
    "model_alias_changes",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("org", Text, nullable=False),
    Column("model_project", Text, nullable=False),
    Column("alias", Text, nullable=False),
    Column("from_version", Text, nullable=False),
    Column("to_version", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("time", time_type(), nullable=False),
    Column("reason", Text, nullable=False),
)
Index("ix_model_alias_changes_model_project", model_alias_changes.c.model_project, model_alias_changes.c.id)

# Which deployment answered with which version, and when.
model_deployments = Table(
    "model_deployments",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("org", Text, nullable=False),
    Column("model_project", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("deployment", Text, nullable=False),
    Column("live_time", time_type(), nullable=False),
    Column("stop_time", time_type()),
)
Index("ix_model_deployments_model_project", model_deployments.c.model_project, model_deployments.c.id)
Index(
    "uq_model_deployments_open",
    model_deployments.c.deployment,
    unique=True,
    postgresql_where=model_deployments.c.stop_time.is_(None),
)

# The keys that sign versions, sealed; kept for ever. They belong to the platform, not to a tenant.
model_signing_keys = Table(
    "model_signing_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("create_time", time_type(), nullable=False),
)

# How fast the workers of the last run of a kind computed. They belong to the platform, not to a tenant.
machine_rates = Table(
    "machine_rates",
    metadata,
    Column("threads", Integer, primary_key=True),
    Column("operations", Float, nullable=False),
    Column("bandwidth", Float, nullable=False),
    Column("call_seconds", Float, nullable=False),
    Column("update_time", time_type(), nullable=False),
)

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

# A row a metric of a run; whoever adds points locks it. `open_count`: of its last segments those not yet joined.
run_metrics = Table(
    "run_metrics",
    metadata,
    Column("run_uid", uid_type(), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("org", Text, nullable=False),
    Column("point_count", BigInteger, nullable=False),
    Column("segment_count", BigInteger, nullable=False),
    Column("open_count", Integer, nullable=False),
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    # Of the finite values.
    Column("min_value", Float),
    Column("max_value", Float),
    Column("last_value", Float, nullable=False),
    Column("last_time", time_type(), nullable=False),
)

# Points as columns; see metric_columns.py. A later segment wins over an earlier one.
run_metric_segments = Table(
    "run_metric_segments",
    metadata,
    Column("run_uid", uid_type(), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("org", Text, nullable=False),
    Column("point_count", Integer, nullable=False),
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Column("steps", LargeBinary, nullable=False),
    Column("times", LargeBinary, nullable=False),
    Column("points", LargeBinary, nullable=False),
)

# What happened to a run. Rows are added, never changed.
run_events = Table(
    "run_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("org", Text, nullable=False),
    Column("run_uid", uid_type(), nullable=False),
    Column("kind", Text, nullable=False),
    Column("time", time_type(), nullable=False),
    Column("message", Text, nullable=False),
    Column("details", JSONB, nullable=False),
)
Index("ix_run_events_run_uid_id", run_events.c.run_uid, run_events.c.id)

# What runs are found and sorted by; see run_search.py. No text of a tenant is in it.
run_terms = Table(
    "run_terms",
    metadata,
    Column("run_uid", uid_type(), primary_key=True),
    Column("term", BigInteger, primary_key=True),
    Column("value", Float, nullable=False),
)
Index("ix_run_terms_term_value_run_uid", run_terms.c.term, run_terms.c.value, run_terms.c.run_uid)
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
    Column("algorithm_version", Text, nullable=False),
    Column("parameters", JSONB, nullable=False),
    # What a trial needs; empty: not known.
    Column("estimate", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
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

# Token arrays and tokenizers that runs have made, by all that they depend on. See engines/encodings.py for the key.
encodings = Table(
    "encodings",
    metadata,
    Column("org", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("dataset_digest", Text, nullable=False),
    Column("manifest_digest", Text, nullable=False),
    Column("create_time", time_type(), nullable=False),
    Column("use_time", time_type(), nullable=False),
)
Index("ix_encodings_org_dataset_digest", encodings.c.org, encodings.c.dataset_digest)

# Manifests that a task has written and needs no more, as replaced checkpoints. The sweep takes files and row.
given_up = Table(
    "given_up",
    metadata,
    Column("task_uid", uid_type(), primary_key=True),
    Column("manifest_digest", Text, primary_key=True),
    Column("org", Text, nullable=False),
    Column("create_time", time_type(), nullable=False),
)

# What an outside run has beside a run of ours.
run_records = Table(
    "run_records",
    metadata,
    Column("run_uid", uid_type(), primary_key=True),
    Column("org", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("tags", JSONB, nullable=False),
    Column("start_time", time_type(), nullable=False),
    Column("end_time", time_type()),
)

# Files of outside runs, each as parts in the blob store; an upload that is not complete is no file yet.
run_artifacts = Table(
    "run_artifacts",
    metadata,
    Column("run_uid", uid_type(), primary_key=True),
    Column("path", Text, primary_key=True),
    Column("upload_id", Text, primary_key=True),
    Column("org", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    # `{sha256, size}` of each part.
    Column("parts", JSONB, nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("create_time", time_type(), nullable=False),
)
