"""Datasets are shared by name; versions are published as data products."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, SmallInteger, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from libs.common.db.infrastructure import create_resource_table

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("datasets", Column("shared_with", ARRAY(Text), nullable=False, server_default=text("'{}'")))
    create_resource_table(
        op,
        "data_products",
        Column("dataset_version", Text, nullable=False),
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("licence", Text, nullable=False),
        Column("tags", ARRAY(Text), nullable=False),
        Column("visibility", SmallInteger, nullable=False),
        Column("type", SmallInteger, nullable=False),
        Column("row_count", BigInteger, nullable=False),
        Column("byte_count", BigInteger, nullable=False),
        Column("columns", JSONB, nullable=False),
    )
    op.create_index("ix_data_products_dataset_version", "data_products", ["dataset_version"])
