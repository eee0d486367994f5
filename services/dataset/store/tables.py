"""The tables of the dataset service."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    cast,
    func,
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
    Column("shared_with", ARRAY(Text), nullable=False),
)
Index(None, datasets.c.org, datasets.c.project_space, datasets.c.create_time.desc())

# Without text and without an organization of its own: see store/search.py.
dataset_terms = Table(
    "dataset_terms",
    metadata,
    Column("uid", uid_type(), ForeignKey("datasets.uid", ondelete="CASCADE"), primary_key=True),
    Column("terms", ARRAY(Integer), nullable=False),
)
# Not updated later: a list of pending entries, up to 4 MiB, would be read in every search (34 ms instead of 0.1 ms).
Index(None, dataset_terms.c.terms, postgresql_using="gin", postgresql_with={"fastupdate": "off"})

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

leakage_checks = resource_table(
    metadata, "leakage_checks", Column("figures", JSONB, nullable=False), Column("task", Text, nullable=False)
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


def having_words(search: str, *columns: ColumnElement[Any]) -> list[ColumnElement[bool]]:
    """That a row has each word of a search in one of these columns, in any case."""
    text = func.lower(func.concat_ws(" ", *columns))
    return [text.contains(word, autoescape=True) for word in search.lower().split()]


def joined(column: ColumnElement[Any]) -> ColumnElement[str]:
    """The texts of a list as one."""
    return func.array_to_string(column, " ")


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

work_templates = resource_table(
    metadata,
    "work_templates",
    Column("display_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("form", JSONB, nullable=False),
)

work_projects = resource_table(
    metadata,
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

work_items = resource_table(
    metadata,
    "work_items",
    Column("subject", Text, nullable=False),
    Column("payload", JSONB, nullable=False),
    Column("gold", JSONB(none_as_null=True)),
    Column("proposal", JSONB(none_as_null=True)),
    Column("priority", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("holders", ARRAY(Text), nullable=False),
    Column("refusers", ARRAY(Text), nullable=False),
    Column("lease_expire_time", time_type()),
    Column("submitted", Integer, nullable=False),
    Column("agreement", Float),
    Column("answer", JSONB(none_as_null=True)),
    Column("reviewer", Text, nullable=False),
    Column("review_expire_time", time_type()),
    Column("excluded_reviewer", Text, nullable=False),
)
# Who may see a row because it is in his hands.
Index(None, work_items.c.subject)
# The queue of a project, without what is done.
Index(
    "ix_work_items_queue",
    work_items.c.parent,
    work_items.c.state,
    work_items.c.priority.desc(),
    work_items.c.position,
    postgresql_where=work_items.c.state != "ACCEPTED",
)

work_assignments = resource_table(
    metadata,
    "work_assignments",
    Column("project", Text, nullable=False),
    Column("annotator", Text, nullable=False),
    Column("lease_expire_time", time_type()),
    Column("answer", JSONB(none_as_null=True)),
    Column("active_seconds", Float, nullable=False),
    Column("submit_time", time_type()),
    Column("reason", Text, nullable=False),
    Column("right", Boolean),
)
Index("ix_work_assignments_of", work_assignments.c.org, work_assignments.c.annotator, work_assignments.c.project)

work_reports = resource_table(
    metadata, "work_reports", Column("figures", JSONB, nullable=False), Column("task", Text, nullable=False)
)

data_products = resource_table(
    metadata,
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
Index(None, data_products.c.dataset_version)

streams = resource_table(
    metadata,
    "streams",
    Column("roll_rows", BigInteger, nullable=False),
    Column("roll_seconds", Integer, nullable=False),
    Column("pending_rows", BigInteger, nullable=False),
    Column("pending_bytes", BigInteger, nullable=False),
    Column("roll_time", time_type()),
    Column("row_count", BigInteger, nullable=False),
    Column("roll_count", BigInteger, nullable=False),
    Column("task", Text, nullable=False),
    Column("source_uri", Text, nullable=False),
    Column("source_secret", Text, nullable=False),
    Column("source_subject", Text, nullable=False),
    Column("source_origin", Text, nullable=False),
    Column("source_position", BigInteger, nullable=False),
    Column("source_error", Text, nullable=False),
    Column("rejected_count", BigInteger, nullable=False),
    Column("last_rejection", Text, nullable=False),
)
Index(None, streams.c.roll_time)

stream_batches = Table(
    "stream_batches",
    metadata,
    Column("stream_uid", uid_type(), ForeignKey("streams.uid", ondelete="CASCADE"), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("org", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
)

detectors = resource_table(
    metadata,
    "detectors",
    Column("display_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("manifest_digest", Text, nullable=False),
    Column("byte_count", BigInteger, nullable=False),
    Column("card", JSONB, nullable=False),
    Column("task", Text, nullable=False),
)
