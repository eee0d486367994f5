"""Rows of a database: one query, streamed, in a session that cannot write."""

from __future__ import annotations

import asyncio
import sqlite3
import ssl
import time
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from libs.common.domain import DomainError, invalid
from libs.common.http.external import Resolver, allowed_addresses, resolve
from libs.common.http.links import Networks
from libs.compute.context import EngineError
from services.dataset.engines.lines import Line
from services.dataset.engines.tables import json_value

# Rows fetched at once: a row may have 8 MiB.
_FETCHED_ROWS = 16
_CONNECT_SECONDS = 15
_POSTGRES, _SQLITE = "postgresql", "sqlite"
# The others are told that they are not read.
_BACKENDS = (_POSTGRES, _SQLITE, "postgres", "mysql", "mariadb", "mssql", "oracle")
# libpq's words. `require` encrypts and trusts anybody; `verify-full` checks the certificate against the host's name.
_SSL_MODES = ("disable", "prefer", "require", "verify-full")
_LARGEST = 8 * 1024 * 1024
# The server measures each row before it sends it, as what is fetched is in memory at once; a row that is too large is a
# text that is no boolean, which ends the query. Without OFFSET 0, rows that the query itself leaves out might be
# measured too.
_TOO_LARGE = f"a row has more than {_LARGEST:,} bytes"
_MEASURED = f"""
SELECT argosy.* FROM (SELECT * FROM (
%s
) asked OFFSET 0) argosy
WHERE CAST(CASE WHEN octet_length(CAST(argosy AS text)) > {_LARGEST} THEN '{_TOO_LARGE}' ELSE 'true' END AS boolean)
"""  # noqa: S608
# Steps of SQLite's machine between two looks at the clock: a millisecond.
_SQLITE_STEPS = 10_000
_SQLITE_ACTIONS = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
)
# What a role must not be in beside not being a superuser: with these, a SELECT writes files or starts programs.
_POWERS = ("pg_write_server_files", "pg_execute_server_program")


def is_database(url: str) -> bool:
    """Whether an address is that of a database, as SQLAlchemy writes it."""
    return url.partition(":")[0].partition("+")[0].lower() in _BACKENDS


class Query:
    """One query of one database.

    Args:
        url: SQLAlchemy URL with all its secrets.
        text: one SELECT, WITH, VALUES or TABLE.
        networks: where the database may be.
        sqlite_folder: folder of the SQLite files that may be read; empty: none.
        seconds: for everything.
        look_up: finds the addresses of hosts.

    Raises:
        DomainError: INVALID_FIELD.
    """

    def __init__(
        self,
        url: str,
        text: str,
        networks: Networks,
        sqlite_folder: str,
        seconds: float,
        look_up: Resolver = resolve,
    ) -> None:
        if not text.strip():
            raise invalid("query", "is missing: which rows to import")
        self._url = _parsed(url)
        self._text = text
        self._networks = networks
        self._folder = sqlite_folder
        self._seconds = seconds
        self._look_up = look_up

    @property
    def address(self) -> str:
        """Which database, without user and password."""
        if self._url.get_backend_name() == _SQLITE:
            return f"sqlite:///{Path(self._url.database or '').name}"
        return f"{_POSTGRES}://{self._url.host}:{_port(self._url)}/{self._url.database}"

    def rows(self) -> Generator[Line]:
        """The rows, numbered from 1.

        Raises:
            DomainError: INVALID_FIELD, the query is refused; PEER_UNAVAILABLE, the database is away.
            EngineError: DEADLINE_EXCEEDED.
        """
        # Closed here, in this thread: a session that waits for the garbage collector holds its snapshot.
        sqlite = self._url.get_backend_name() == _SQLITE
        with closing(self._sqlite_rows() if sqlite else self._postgres_rows()) as found:
            for number, row in enumerate(found, 1):
                values = {name: json_value(value) for name, value in row}
                if len(values) < len(row):
                    raise invalid("query", "names a column twice")
                yield Line(number, values)

    # PostgreSQL.

    def _postgres_rows(self) -> Generator[list[tuple[str, Any]]]:
        until = time.monotonic() + self._seconds
        with asyncio.Runner() as runner:
            connection = runner.run(self._connect())
            try:
                runner.run(self._declare(connection, until))
                while rows := runner.run(self._fetch(connection, until)):
                    yield from (list(row.items()) for row in rows)
            finally:
                with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    runner.run(connection.close(timeout=_CONNECT_SECONDS))

    async def _connect(self) -> asyncpg.Connection:
        """A session that is read-only from its first statement on, to an address that was checked."""
        url, host = self._url, str(self._url.host)
        address = allowed_addresses(host, _port(url), self._networks, "secret", self._look_up)[0]
        milliseconds = str(int(self._seconds * 1000))
        try:
            return await asyncpg.connect(
                host=address,
                port=_port(url),
                user=url.username or "",
                password=url.password or "",
                database=url.database or "",
                ssl=_tls(str(url.query.get("sslmode", "prefer")), host),
                timeout=_CONNECT_SECONDS,
                server_settings={
                    "application_name": "argosy import",
                    "default_transaction_read_only": "on",
                    "statement_timeout": milliseconds,
                    "lock_timeout": milliseconds,
                    "idle_in_transaction_session_timeout": milliseconds,
                },
            )
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            raise invalid("secret", f"{self.address} refuses the user or the password") from error
        except asyncpg.InvalidCatalogNameError as error:
            raise invalid("secret", f"{self.address} does not exist") from error
        except ssl.SSLCertVerificationError as error:
            raise invalid("secret", f"the certificate of {host} is not trusted") from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise self._away() from error

    async def _declare(self, connection: asyncpg.Connection, until: float) -> None:
        """Opens a cursor. A prepared statement is one statement, and what a cursor is declared for can only read."""
        try:
            await self._require_harmless(connection)
            await connection.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            text = self._text.rstrip().rstrip(";")
            # What is no statement by itself could close the brackets that it is put in.
            await connection.prepare(text, timeout=_left(until))
            declare = f"DECLARE argosy NO SCROLL CURSOR FOR {_MEASURED.replace('%s', text)}"
            statement = await connection.prepare(declare, timeout=_left(until))
            await statement.fetch(timeout=_left(until))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise self._failed(error, connection) from error

    async def _require_harmless(self, connection: asyncpg.Connection) -> None:
        """Not even a read-only transaction stops a superuser's functions from writing files on the server."""
        held = await connection.fetchval(
            "SELECT rolsuper OR EXISTS (SELECT FROM pg_roles p WHERE p.rolname = ANY($1) AND"
            " pg_has_role(current_user, p.oid, 'MEMBER')) FROM pg_roles WHERE rolname = current_user",
            list(_POWERS),
        )
        if held:
            raise invalid("secret", "its user may write files on the server: give one that can only read tables")

    async def _fetch(self, connection: asyncpg.Connection, until: float) -> list[asyncpg.Record]:
        try:
            # The query may have changed the server's own limit; this one it cannot.
            return await connection.fetch(f"FETCH FORWARD {_FETCHED_ROWS} FROM argosy", timeout=_left(until))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise self._failed(error, connection) from error

    def _failed(self, error: Exception, connection: asyncpg.Connection) -> Exception:
        if isinstance(error, asyncpg.QueryCanceledError | TimeoutError):
            return self._too_slow()
        if connection.is_closed() or isinstance(error, OSError | asyncpg.OperatorInterventionError):
            return self._away()
        return invalid("query", _TOO_LARGE if _TOO_LARGE in str(error) else str(error).partition("\n")[0])

    # SQLite.

    def _sqlite_rows(self) -> Generator[list[tuple[str, Any]]]:
        until = time.monotonic() + self._seconds
        path = self._sqlite_file()
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, check_same_thread=False)) as connection:
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST)
                connection.set_progress_handler(lambda: time.monotonic() > until, _SQLITE_STEPS)
                connection.set_authorizer(_only_reading)
                cursor = connection.execute(self._text)
                if cursor.description is None:
                    raise invalid("query", "gives no rows")
                names = [str(column[0]) for column in cursor.description]
                for row in cursor:
                    yield list(zip(names, row, strict=True))
        except (sqlite3.Error, sqlite3.Warning) as error:
            if time.monotonic() > until:
                raise self._too_slow() from error
            raise invalid("query", str(error)) from error

    def _sqlite_file(self) -> Path:
        if not self._folder:
            raise invalid("secret", "SQLite files are not read here; an operator allows a folder of them")
        folder = Path(self._folder).resolve()
        path = (folder / (self._url.database or "")).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise invalid(
                "secret", f"there is no file {Path(self._url.database or '').name!r} among those that may be read"
            )
        return path

    def _too_slow(self) -> EngineError:
        return EngineError(
            "DEADLINE_EXCEEDED", f"the query of {self.address} took more than {self._seconds:,.0f} seconds"
        )

    def _away(self) -> DomainError:
        return DomainError("PEER_UNAVAILABLE", f"{self.address} does not answer", service=str(self._url.host))


def _parsed(text: str) -> URL:
    """The URL, if nothing in it leads around the guards. Errors never repeat it: it holds a password."""
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise invalid("secret", "holds no SQLAlchemy URL") from None
    if backend == _SQLITE and not url.host and not url.query and url.database:
        return url
    if backend != _POSTGRES:
        raise invalid("secret", f"databases of the kind {backend} are not read: postgresql and sqlite are")
    if not url.host or not url.database or "/" in url.host or "," in url.host:
        raise invalid("secret", "its URL must name one host and one database")
    # `host`, `service`, `passfile` and the like would lead elsewhere.
    unknown = set(url.query) - {"sslmode"}
    if unknown or url.query.get("sslmode", "prefer") not in _SSL_MODES:
        raise invalid("secret", f"its URL may have no parameter but sslmode, one of {', '.join(_SSL_MODES)}")
    return url


def _left(until: float) -> float:
    """Seconds; never 0, which asyncpg takes for no limit at all."""
    return max(0.001, until - time.monotonic())


def _port(url: URL) -> int:
    return url.port or 5432


def _tls(mode: str, host: str) -> ssl.SSLContext | bool | str:
    """What asyncpg takes for a mode."""
    if mode != "verify-full":
        return mode
    context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    context.name = host
    return context


class _NamedContext(ssl.SSLContext):
    """Checks the certificate against the name of the host, while the connection goes to its address."""

    name = ""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.name, session)


def _only_reading(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    """SQLite's authorizer: reading tables and computing, nothing else (no ATTACH, no PRAGMA, no extension)."""
    if action == sqlite3.SQLITE_FUNCTION and second == "load_extension":
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _SQLITE_ACTIONS else sqlite3.SQLITE_DENY
