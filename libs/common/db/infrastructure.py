"""What the first migration of every service creates besides the service's own tables.

Statements here are frozen: a later change of these tables is a new function that each service calls from a new
migration. A test compares the result with `tables.py`.
"""

from __future__ import annotations

from typing import Any

from alembic.operations import Operations
from sqlalchemy import Column

from libs.common.db.tables import resource_columns

# `current_setting(..., true)` is NULL before the first SET and '' after a transaction that set it locally.
_POLICY = "org = current_setting('argosy.org', true) OR current_setting('argosy.org', true) = '*'"

_INFRASTRUCTURE = (
    """
    CREATE TABLE outbox (
        id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT pk_outbox PRIMARY KEY,
        event_id uuid NOT NULL CONSTRAINT uq_outbox_event_id UNIQUE,
        org text NOT NULL,
        type text NOT NULL,
        resource text NOT NULL,
        event bytea NOT NULL,
        create_time timestamptz NOT NULL DEFAULT now(),
        cursor bigint CONSTRAINT uq_outbox_cursor UNIQUE,
        publish_time timestamptz
    )
    """,
    "CREATE INDEX ix_outbox_unnumbered ON outbox (id) WHERE cursor IS NULL",
    "CREATE INDEX ix_outbox_unpublished ON outbox (cursor) WHERE cursor IS NOT NULL AND publish_time IS NULL",
    "CREATE TABLE outbox_cursor (id smallint CONSTRAINT pk_outbox_cursor PRIMARY KEY, last bigint NOT NULL)",
    "INSERT INTO outbox_cursor VALUES (1, 0)",
    """
    CREATE TABLE inbox (
        consumer text,
        event_id uuid,
        create_time timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT pk_inbox PRIMARY KEY (consumer, event_id)
    )
    """,
    "CREATE INDEX ix_inbox_create_time ON inbox (create_time)",
    """
    CREATE TABLE subscriptions (
        consumer text,
        producer text,
        cursor bigint NOT NULL,
        update_time timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT pk_subscriptions PRIMARY KEY (consumer, producer)
    )
    """,
    """
    CREATE TABLE dead_letters (
        consumer text,
        event_id uuid,
        type text NOT NULL,
        event bytea NOT NULL,
        error text NOT NULL,
        attempts integer NOT NULL,
        first_time timestamptz NOT NULL DEFAULT now(),
        dead_time timestamptz,
        CONSTRAINT pk_dead_letters PRIMARY KEY (consumer, event_id)
    )
    """,
    """
    CREATE TABLE idempotency (
        org text,
        method text,
        request_id text,
        request_sha256 bytea NOT NULL,
        response bytea,
        create_time timestamptz NOT NULL DEFAULT now(),
        CONSTRAINT pk_idempotency PRIMARY KEY (org, method, request_id)
    )
    """,
    "CREATE INDEX ix_idempotency_create_time ON idempotency (create_time)",
)


def create_infrastructure(op: Operations) -> None:
    """Creates outbox, inbox, subscriptions, dead letters and idempotency. For the migration 0001 of each service."""
    for statement in _INFRASTRUCTURE:
        op.execute(statement)
    for table in ("outbox", "idempotency"):
        enable_row_level_security(op, table)


def enable_row_level_security(op: Operations, table: str) -> None:
    """Only rows of the organization of the unit of work can be read or written, by anybody, the owner included.

    Args:
        op: alembic operations.
        table: its name; it has a column `org`.
    """
    op.execute(f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY')
    op.execute(f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY')
    op.execute(f'CREATE POLICY tenant ON "{table}" USING ({_POLICY}) WITH CHECK ({_POLICY})')


def create_resource_table(op: Operations, name: str, *extra: Column[Any]) -> None:
    """Creates the table of `tables.resource_table` with its index and row-level security.

    Args:
        op: alembic operations.
        name: of the table.
        extra: further columns and constraints.
    """
    op.create_table(name, *resource_columns(), *extra)
    op.execute(f'CREATE INDEX "ix_{name}_org_parent_create_time_uid" ON "{name}" (org, parent, create_time DESC, uid)')
    enable_row_level_security(op, name)
