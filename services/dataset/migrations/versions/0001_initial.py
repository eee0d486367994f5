"""Datasets, versions, uploads, tasks."""

from alembic import op
from sqlalchemy import BigInteger, Boolean, Column, SmallInteger, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from libs.common.db.infrastructure import create_infrastructure, create_resource_table, enable_row_level_security
from libs.common.db.tables import time_type
from libs.common.tasks.tables import create_task_tables

revision = "0001"
down_revision = None


def upgrade() -> None:
    create_infrastructure(op)
    create_task_tables(op)
    create_resource_table(
        op,
        "datasets",
        Column("display_name", Text, nullable=False),
        Column("description", Text, nullable=False),
        Column("type", SmallInteger, nullable=False),
        Column("source", Text, nullable=False),
        Column("project_space", Text, nullable=False),
        Column("visibility", SmallInteger, nullable=False),
        Column("latest_version", Text, nullable=False),
        Column("locked", Boolean, nullable=False),
        Column("version_count", BigInteger, nullable=False),
    )
    create_resource_table(
        op,
        "dataset_versions",
        Column("manifest_digest", Text, nullable=False),
        Column("content_digest", Text, nullable=False),
        Column("row_count", BigInteger, nullable=False),
        Column("byte_count", BigInteger, nullable=False),
        Column("columns", JSONB, nullable=False),
        Column("tags", ARRAY(Text), nullable=False),
        Column("task", Text, nullable=False),
        Column("report", JSONB, nullable=False),
        Column("new_byte_count", BigInteger, nullable=False),
    )
    create_resource_table(
        op,
        "uploads",
        Column("expire_time", time_type(), nullable=False),
        Column("file_name", Text, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("offset", BigInteger, nullable=False),
        Column("digest", Text, nullable=False),
        Column("manifest_digest", Text, nullable=False),
    )
    op.execute("CREATE INDEX ix_uploads_expire_time ON uploads (expire_time)")
    op.execute(
        """
        CREATE TABLE upload_parts (
            upload_uid uuid CONSTRAINT fk_upload_parts_upload_uid_uploads REFERENCES uploads (uid) ON DELETE CASCADE,
            "offset" bigint,
            org text NOT NULL,
            size bigint NOT NULL,
            sha256 text NOT NULL,
            CONSTRAINT pk_upload_parts PRIMARY KEY (upload_uid, "offset")
        )
        """
    )
    enable_row_level_security(op, "upload_parts")
