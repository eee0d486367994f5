"""Human work: templates, projects, items, assignments, reports."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, DateTime, Float, Integer, SmallInteger, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from libs.common.db.infrastructure import create_resource_table

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    create_resource_table(
        op,
        "work_templates",
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("form", JSONB, nullable=False),
    )
    create_resource_table(
        op,
        "work_projects",
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("source", Text, nullable=False),
        Column("form", JSONB, nullable=False),
        Column("overlap", Integer, nullable=False),
        Column("annotators", ARRAY(Text), nullable=False),
        Column("reviewers", ARRAY(Text), nullable=False),
        Column("managers", ARRAY(Text), nullable=False),
        Column("review", SmallInteger, nullable=False),
        Column("agreement_threshold", Float, nullable=False),
        Column("lease_seconds", Integer, nullable=False),
        Column("gold_share", Float, nullable=False),
        Column("gold_min_accuracy", Float, nullable=False),
        Column("price_micros", BigInteger, nullable=False),
        Column("currency", Text, nullable=False),
        Column("paused", Boolean, nullable=False),
        Column("item_count", BigInteger, nullable=False),
    )
    create_resource_table(
        op,
        "work_items",
        Column("subject", Text, nullable=False),
        Column("payload", JSONB, nullable=False),
        Column("gold", JSONB),
        Column("proposal", JSONB),
        Column("priority", Integer, nullable=False),
        Column("position", BigInteger, nullable=False),
        Column("holders", ARRAY(Text), nullable=False),
        Column("refusers", ARRAY(Text), nullable=False),
        Column("lease_expire_time", DateTime(timezone=True)),
        Column("submitted", Integer, nullable=False),
        Column("agreement", Float),
        Column("answer", JSONB),
        Column("reviewer", Text, nullable=False),
        Column("review_expire_time", DateTime(timezone=True)),
        Column("excluded_reviewer", Text, nullable=False),
    )
    op.execute(
        "CREATE INDEX ix_work_items_queue ON work_items (parent, state, priority DESC, position) "
        "WHERE state <> 'ACCEPTED'"
    )
    create_resource_table(
        op,
        "work_assignments",
        Column("project", Text, nullable=False),
        Column("annotator", Text, nullable=False),
        Column("lease_expire_time", DateTime(timezone=True)),
        Column("answer", JSONB),
        Column("active_seconds", Float, nullable=False),
        Column("submit_time", DateTime(timezone=True)),
        Column("reason", Text, nullable=False),
        Column("right", Boolean),
    )
    op.create_index("ix_work_assignments_of", "work_assignments", ["org", "annotator", "project"])
    create_resource_table(
        op, "work_reports", Column("figures", JSONB, nullable=False), Column("task", Text, nullable=False)
    )
