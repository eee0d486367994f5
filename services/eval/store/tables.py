"""The tables of evaluation."""

from __future__ import annotations

from sqlalchemy import Column, Index, Text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.tables import new_metadata, resource_table

metadata = new_metadata()

evaluations = resource_table(
    metadata,
    "evaluations",
    Column("display_name", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("dataset_version", Text, nullable=False),
    Column("baseline_version", Text, nullable=False),
    Column("spec", JSONB, nullable=False),
    Column("task", Text, nullable=False),
    Column("model_digest", Text, nullable=False),
    Column("report", JSONB, nullable=False),
    Column("samples_digest", Text, nullable=False),
    # '' no gate or not decided, PENDING decided and not yet on the model version, RECORDED, REFUSED by training.
    Column("gate_state", Text, nullable=False),
    Column("traceparent", Text, nullable=False),
)
Index("ix_evaluations_gate_pending", evaluations.c.uid, postgresql_where=evaluations.c.gate_state == "PENDING")
