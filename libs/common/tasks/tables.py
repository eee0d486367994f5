"""Tables of tasks, in the database of every service that has long work."""

from __future__ import annotations

from alembic.operations import Operations
from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, Table, Text, text
from sqlalchemy.dialects.postgresql import JSONB

from libs.common.db.infrastructure import enable_row_level_security
from libs.common.db.lease import lease_columns
from libs.common.db.tables import new_metadata, time_type, uid_type

metadata = new_metadata()
_EMPTY = text("'{}'::jsonb")
_NOW = text("now()")

tasks = Table(
    "tasks",
    metadata,
    Column("uid", uid_type(), primary_key=True),
    Column("org", Text, nullable=False),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("creator", Text, nullable=False),
    Column("labels", JSONB, nullable=False, server_default=_EMPTY),
    Column("traceparent", Text, nullable=False, server_default=""),
    Column("input", JSONB, nullable=False),
    Column("state", Text, nullable=False),
    Column("version", BigInteger, nullable=False, server_default=text("1")),
    Column("create_time", time_type(), nullable=False, server_default=_NOW),
    Column("update_time", time_type(), nullable=False, server_default=_NOW),
    Column("start_time", time_type()),
    Column("end_time", time_type()),
    Column("progress", Float, nullable=False, server_default=text("0")),
    Column("message", Text, nullable=False, server_default=""),
    Column("eta", time_type()),
    Column("cost", JSONB, nullable=False, server_default=_EMPTY),
    Column("attempt", Integer, nullable=False, server_default=text("0")),
    Column("max_attempts", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False, server_default=text("false")),
    Column("pause_requested", Boolean, nullable=False, server_default=text("false")),
    Column("error", JSONB),
    Column("result", JSONB),
    # The newest checkpoint of any attempt.
    Column("checkpoint", JSONB),
    # Id of its room in identity's ledger, stored before it is asked for and until it is left.
    Column("reservation", Text),
    # Name of the Ray actor of this attempt, stored before it exists; whoever adopts the task looks it up.
    Column("carrier", Text, nullable=False, server_default=""),
    # The carrier's last event that is in task_events.
    Column("carrier_cursor", BigInteger, nullable=False, server_default=text("0")),
    # Position of the last change; changes of the task itself and its events share one sequence.
    Column("sequence", BigInteger, nullable=False, server_default=text("1")),
    *lease_columns(),
)
Index("ix_tasks_org_create_time_uid", tasks.c.org, tasks.c.create_time.desc(), tasks.c.uid)
Index("ix_tasks_target", tasks.c.org, tasks.c.target)
Index("ix_tasks_waiting", tasks.c.reservation, postgresql_where=tasks.c.state == "QUEUED")
Index("ix_tasks_work", tasks.c.create_time, postgresql_where=tasks.c.state.in_(("QUEUED", "RUNNING")))

# Log lines and metrics. The states of a task need no rows: a watcher is told the current one.
task_events = Table(
    "task_events",
    metadata,
    Column("task_uid", uid_type(), ForeignKey("tasks.uid", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("org", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("time", time_type(), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("payload", JSONB, nullable=False),
)

# Rooms that tasks have left; see left_rooms.py.
left_rooms = Table(
    "left_rooms",
    metadata,
    Column("reservation", Text, primary_key=True),
    Column("org", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("end_time", time_type(), nullable=False),
    Column("kept_bytes", BigInteger, nullable=False),
    Column("told", Boolean, nullable=False),
)
Index("ix_left_rooms_holder", left_rooms.c.holder)
Index("ix_left_rooms_untold", left_rooms.c.task, postgresql_where=~left_rooms.c.told)

_STATEMENTS = (
    """
    CREATE TABLE tasks (
        uid uuid CONSTRAINT pk_tasks PRIMARY KEY,
        org text NOT NULL,
        name text NOT NULL CONSTRAINT uq_tasks_name UNIQUE,
        kind text NOT NULL,
        target text NOT NULL,
        creator text NOT NULL,
        labels jsonb NOT NULL DEFAULT '{}'::jsonb,
        traceparent text NOT NULL DEFAULT '',
        input jsonb NOT NULL,
        state text NOT NULL,
        version bigint NOT NULL DEFAULT 1,
        create_time timestamptz NOT NULL DEFAULT now(),
        update_time timestamptz NOT NULL DEFAULT now(),
        start_time timestamptz,
        end_time timestamptz,
        progress double precision NOT NULL DEFAULT 0,
        message text NOT NULL DEFAULT '',
        eta timestamptz,
        cost jsonb NOT NULL DEFAULT '{}'::jsonb,
        attempt integer NOT NULL DEFAULT 0,
        max_attempts integer NOT NULL,
        cancel_requested boolean NOT NULL DEFAULT false,
        error jsonb,
        result jsonb,
        checkpoint jsonb,
        carrier text NOT NULL DEFAULT '',
        carrier_cursor bigint NOT NULL DEFAULT 0,
        sequence bigint NOT NULL DEFAULT 1,
        lease_owner text,
        lease_token uuid,
        lease_expires_at timestamptz
    )
    """,
    "CREATE INDEX ix_tasks_org_create_time_uid ON tasks (org, create_time DESC, uid)",
    "CREATE INDEX ix_tasks_target ON tasks (org, target)",
    "CREATE INDEX ix_tasks_work ON tasks (create_time) WHERE state IN ('QUEUED', 'RUNNING')",
    """
    CREATE TABLE task_events (
        task_uid uuid CONSTRAINT fk_task_events_task_uid_tasks REFERENCES tasks (uid) ON DELETE CASCADE,
        sequence bigint,
        org text NOT NULL,
        kind text NOT NULL,
        time timestamptz NOT NULL,
        attempt integer NOT NULL,
        payload jsonb NOT NULL,
        CONSTRAINT pk_task_events PRIMARY KEY (task_uid, sequence)
    )
    """,
)


def create_task_tables(op: Operations) -> None:
    """Creates the tables of tasks, for a migration of each service that has task kinds. Frozen, as `infrastructure`."""
    for statement in _STATEMENTS:
        op.execute(statement)
    for table in ("tasks", "task_events"):
        enable_row_level_security(op, table)


def add_pause_to_tasks(op: Operations) -> None:
    """Tasks can be paused from now on. For a migration of each service that has task kinds. Frozen."""
    op.execute("ALTER TABLE tasks ADD COLUMN pause_requested boolean NOT NULL DEFAULT false")


def add_quota_to_tasks(op: Operations) -> None:
    """Tasks reserve room in identity's ledger. For a migration of each service that has task kinds. Frozen."""
    op.execute("ALTER TABLE tasks ADD COLUMN reservation text")
    op.execute(
        "CREATE INDEX ix_tasks_reservation ON tasks (reservation) "
        "WHERE reservation IS NOT NULL AND state NOT IN ('QUEUED', 'RUNNING')"
    )


def add_left_rooms(op: Operations) -> None:
    """The end of a task and that of its room are written at once. For a migration of each service that has task kinds.
    Frozen."""
    op.execute(
        """
        CREATE TABLE left_rooms (
            reservation text CONSTRAINT pk_left_rooms PRIMARY KEY,
            org text NOT NULL,
            task text NOT NULL,
            subject text NOT NULL,
            holder text NOT NULL,
            end_time timestamptz NOT NULL,
            kept_bytes bigint NOT NULL,
            told boolean NOT NULL
        )
        """
    )
    op.execute("CREATE INDEX ix_left_rooms_holder ON left_rooms (holder)")
    op.execute("CREATE INDEX ix_left_rooms_untold ON left_rooms (task) WHERE NOT told")
    op.execute(
        """
        WITH ended AS (
            UPDATE tasks SET reservation = NULL
            FROM (SELECT uid, reservation AS left_room FROM tasks) AS before
            WHERE tasks.uid = before.uid AND reservation IS NOT NULL AND state NOT IN ('QUEUED', 'RUNNING')
            RETURNING left_room, org, name, creator, coalesce(end_time, update_time) AS time
        )
        INSERT INTO left_rooms SELECT left_room, org, name, creator, name, time, 0, false FROM ended
        """
    )
    op.execute("DROP INDEX ix_tasks_reservation")
    op.execute("CREATE INDEX ix_tasks_waiting ON tasks (reservation) WHERE state = 'QUEUED'")
    enable_row_level_security(op, "left_rooms")
