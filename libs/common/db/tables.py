"""Tables that every service has, and the columns that every resource table has."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

# One naming rule, so that migrations can name what they change.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

STANDARD_COLUMNS = (
    "uid",
    "org",
    "name",
    "id",
    "parent",
    "version",
    "state",
    "create_time",
    "update_time",
    "delete_time",
    "labels",
    "secrecy",
    "lineage",
    "creator",
)


def new_metadata() -> MetaData:
    """The MetaData of one service."""
    return MetaData(naming_convention=NAMING)


def uid_type() -> Uuid[str]:
    """UUIDs as text on our side."""
    return Uuid(as_uuid=False)


def time_type() -> DateTime:
    """A moment, with its zone."""
    return DateTime(timezone=True)


def resource_columns() -> list[Column[Any]]:
    """Fresh standard columns of a resource, for a Table or for `op.create_table`."""
    return [
        Column("uid", uid_type(), primary_key=True),
        Column("org", Text, nullable=False),
        Column("name", Text, nullable=False, unique=True),
        Column("id", Text, nullable=False),
        Column("parent", Text, nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("state", Text, nullable=False, server_default=""),
        Column("create_time", time_type(), nullable=False),
        Column("update_time", time_type(), nullable=False),
        Column("delete_time", time_type()),
        Column("labels", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
        Column("secrecy", SmallInteger, nullable=False, server_default=text("2")),
        Column("lineage", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
        Column("creator", Text, nullable=False, server_default=""),
    ]


def resource_table(metadata: MetaData, name: str, *extra: Any) -> Table:
    """The table of one kind of resource.

    Args:
        metadata: of the service.
        name: plural, snake case.
        extra: further columns, constraints and indexes. A column stands for the attribute of the entity with its name.
    """
    table = Table(name, metadata, *resource_columns(), *extra)
    # Lists go newest first inside one parent, and continue after (create_time, uid).
    columns = (table.c.org, table.c.parent, table.c.create_time.desc(), table.c.uid)
    Index(f"ix_{name}_org_parent_create_time_uid", *columns)
    return table


infrastructure = new_metadata()

outbox = Table(
    "outbox",
    infrastructure,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("event_id", uid_type(), nullable=False, unique=True),
    Column("org", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("resource", Text, nullable=False),
    # argosy.common.v1.Event without its cursor.
    Column("event", LargeBinary, nullable=False),
    Column("create_time", time_type(), nullable=False, server_default=text("now()")),
    # Given by the relay in the order in which it sees the rows: unlike `id`, no row appears behind one that was read.
    Column("cursor", BigInteger, unique=True),
    Column("publish_time", time_type()),
)
Index("ix_outbox_unnumbered", outbox.c.id, postgresql_where=outbox.c.cursor.is_(None))
Index(
    "ix_outbox_unpublished",
    outbox.c.cursor,
    postgresql_where=outbox.c.cursor.is_not(None) & outbox.c.publish_time.is_(None),
)

# One row: the last cursor given. Its lock makes cursors visible in their order.
outbox_cursor = Table(
    "outbox_cursor",
    infrastructure,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
)

inbox = Table(
    "inbox",
    infrastructure,
    Column("consumer", Text, primary_key=True),
    Column("event_id", uid_type(), primary_key=True),
    Column("create_time", time_type(), nullable=False, server_default=text("now()")),
)
Index(None, inbox.c.create_time)

# How far a consumer has read the outbox of a producer.
subscriptions = Table(
    "subscriptions",
    infrastructure,
    Column("consumer", Text, primary_key=True),
    Column("producer", Text, primary_key=True),
    Column("cursor", BigInteger, nullable=False),
    Column("update_time", time_type(), nullable=False, server_default=text("now()")),
)

# Events whose handler failed; `dead_time` is set when nobody tries again.
dead_letters = Table(
    "dead_letters",
    infrastructure,
    Column("consumer", Text, primary_key=True),
    Column("event_id", uid_type(), primary_key=True),
    Column("type", Text, nullable=False),
    Column("event", LargeBinary, nullable=False),
    Column("error", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("first_time", time_type(), nullable=False, server_default=text("now()")),
    Column("dead_time", time_type()),
)

idempotency = Table(
    "idempotency",
    infrastructure,
    Column("org", Text, primary_key=True),
    Column("method", Text, primary_key=True),
    Column("request_id", Text, primary_key=True),
    Column("request_sha256", LargeBinary, nullable=False),
    # Never null once the transaction that inserted the row has committed.
    Column("response", LargeBinary),
    Column("create_time", time_type(), nullable=False, server_default=text("now()")),
)
Index(None, idempotency.c.create_time)
