"""The tables of the dataset service."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    SmallInteger,
    Table,
    Text,
    cast,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from libs.common.db.tables import new_metadata, resource_table, time_type, uid_type

metadata = new_metadata()

datasets = resource_table(
    metadata,
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

dataset_versions = resource_table(
    metadata,
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

profiles = resource_table(
    metadata, "profiles", Column("figures", JSONB, nullable=False), Column("task", Text, nullable=False)
)

exports = resource_table(
    metadata,
    "exports",
    Column("expire_time", time_type(), nullable=False),
    Column("format", Text, nullable=False),
    Column("choices", Text, nullable=False),
    Column("files", JSONB, nullable=False),
    Column("manifest_digest", Text, nullable=False),
    Column("report", JSONB, nullable=False),
    Column("task", Text, nullable=False),
)
Index(None, exports.c.expire_time)


def tags_overlap(tags: list[str]) -> ColumnElement[bool]:
    """Whether a version has one of these tags."""
    return dataset_versions.c.tags.op("&&")(cast(tags, ARRAY(Text)))


uploads = resource_table(
    metadata,
    "uploads",
    Column("expire_time", time_type(), nullable=False),
    Column("file_name", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("digest", Text, nullable=False),
    Column("manifest_digest", Text, nullable=False),
)
Index(None, uploads.c.expire_time)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("upload_uid", uid_type(), ForeignKey("uploads.uid", ondelete="CASCADE"), primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("org", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
)
