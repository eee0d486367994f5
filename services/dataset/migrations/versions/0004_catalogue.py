"""Datasets are shared by name and found by words; versions are published as data products."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, SmallInteger, Text, Uuid, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from libs.common.db.infrastructure import create_resource_table
from services.dataset.store.search import terms_of

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("datasets", Column("shared_with", ARRAY(Text), nullable=False, server_default=text("'{}'")))
    op.create_index("ix_datasets_space", "datasets", ["org", "project_space", text("create_time DESC")])
    op.create_table(
        "dataset_terms",
        Column("uid", Uuid, ForeignKey("datasets.uid", ondelete="CASCADE"), primary_key=True),
        Column("terms", ARRAY(Integer), nullable=False),
    )
    op.create_index("ix_dataset_terms_terms", "dataset_terms", ["terms"], postgresql_using="gin")
    _remember_datasets()
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


def _remember_datasets() -> None:
    """Makes those that are there already findable."""
    connection = op.get_bind()
    connection.execute(text("SELECT set_config('argosy.org', '*', true)"))
    found = connection.execute(
        text("SELECT uid, org, concat_ws(' ', id, display_name, description, source), labels FROM datasets")
    )
    add = text("INSERT INTO dataset_terms (uid, terms) VALUES (:uid, :terms)")
    for uid, org, words, labels in found.all():
        connection.execute(add, {"uid": uid, "terms": terms_of(org, words, labels)})
