"""Life-cycle, aliases, deployments and signatures of model versions; what happened to them is never changed."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, DateTime, Identity, LargeBinary, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import create_resource_table, enable_row_level_security

revision = "0002"
down_revision = "0001"

# Where versions stand that were made before there were stages.
_PLACE = """
UPDATE model_versions
SET stage = CASE state WHEN 'APPROVED' THEN 'approved' WHEN 'REJECTED' THEN 'rejected' ELSE 'trained' END
"""
# A deployment answers with one version at a time.
_ONE_OPEN = "CREATE UNIQUE INDEX uq_model_deployments_open ON model_deployments (deployment) WHERE stop_time IS NULL"
_REFUSE = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$
"""


def upgrade() -> None:
    for name in ("metrics_url", "model_uri"):
        op.add_column("model_projects", Column(name, Text, nullable=False, server_default=""))
    op.add_column("model_projects", Column("life_cycle", JSONB(none_as_null=True)))
    for name in ("stage", "description", "origin", "licence"):
        op.add_column("model_versions", Column(name, Text, nullable=False, server_default=""))
    op.add_column("model_versions", Column("signature", JSONB(none_as_null=True)))
    op.execute(_PLACE)
    for name in ("from_stage", "to_stage"):
        op.add_column("model_version_transitions", Column(name, Text, nullable=False, server_default=""))
    create_resource_table(op, "model_aliases", Column("model_version", Text, nullable=False))
    op.create_table(
        "model_alias_changes",
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("org", Text, nullable=False),
        Column("model_project", Text, nullable=False),
        Column("alias", Text, nullable=False),
        Column("from_version", Text, nullable=False),
        Column("to_version", Text, nullable=False),
        Column("actor", Text, nullable=False),
        Column("time", DateTime(timezone=True), nullable=False),
        Column("reason", Text, nullable=False),
    )
    op.create_index("ix_model_alias_changes_model_project", "model_alias_changes", ["model_project", "id"])
    enable_row_level_security(op, "model_alias_changes")
    op.create_table(
        "model_deployments",
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("org", Text, nullable=False),
        Column("model_project", Text, nullable=False),
        Column("model_version", Text, nullable=False),
        Column("deployment", Text, nullable=False),
        Column("live_time", DateTime(timezone=True), nullable=False),
        Column("stop_time", DateTime(timezone=True)),
    )
    op.create_index("ix_model_deployments_model_project", "model_deployments", ["model_project", "id"])
    # A deployment answers with one version at a time.
    op.execute(
        "CREATE UNIQUE INDEX uq_model_deployments_open ON model_deployments (deployment) WHERE stop_time IS NULL"
    )
    enable_row_level_security(op, "model_deployments")
    op.create_index("ix_training_runs_model_project", "training_runs", ["model_project", "create_time"])
    op.create_table(
        "model_signing_keys",
        Column("key_id", Text, primary_key=True),
        Column("sealed", LargeBinary, nullable=False),
        Column("create_time", DateTime(timezone=True), nullable=False),
    )
    op.execute(_REFUSE)
    for table in ("model_version_transitions", "model_alias_changes"):
        op.execute(
            f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
