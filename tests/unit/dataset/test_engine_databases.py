"""SQLite files are only read, and URLs lead nowhere but where they say. PostgreSQL is in the integration tests."""

from __future__ import annotations

import shutil
import sqlite3
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from libs.common.domain import DomainError
from libs.common.http.links import Networks
from libs.compute.context import EngineError
from services.dataset.engines.databases import Query, _tls

NETWORKS = Networks([], "SETTING")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database that may be read, and a link to one beside it that may not."""
    outer = tmp_path_factory.mktemp("databases")
    inner = outer / "open"
    inner.mkdir()
    connection = sqlite3.connect(inner / "shop.db")
    connection.execute("CREATE TABLE orders (n INTEGER, note TEXT, raw BLOB, price REAL)")
    rows = [(n, f"note {n}", bytes([n]), n / 2) for n in range(200)]
    connection.executemany("INSERT INTO orders VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    shutil.copy(inner / "shop.db", outer / "private.db")
    (inner / "link.db").symlink_to(outer / "private.db")
    return inner


def query(folder: Path | None, text: str, url: str = "sqlite:///shop.db", seconds: float = 5.0) -> Query:
    return Query(url, text, NETWORKS, str(folder or ""), seconds)


def refusal(folder: Path | None, text: str, **options: Any) -> DomainError:
    with pytest.raises(DomainError) as caught:
        list(query(folder, text, **options).rows())
    assert caught.value.reason == "INVALID_FIELD"
    return caught.value


def test_rows_of_a_query(folder: Path) -> None:
    found = query(folder, "SELECT n, note, raw, price, NULL AS none FROM orders WHERE n > 197 ORDER BY n")
    lines = list(found.rows())
    assert [(line.number, line.row) for line in lines] == [
        (1, {"n": 198, "note": "note 198", "raw": "xg==", "price": 99.0, "none": None}),
        (2, {"n": 199, "note": "note 199", "raw": "xw==", "price": 99.5, "none": None}),
    ]
    assert found.address == "sqlite:///shop.db"


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO orders VALUES (1, 'x', NULL, NULL)",
        "UPDATE orders SET n = 0",
        "DELETE FROM orders",
        "DROP TABLE orders",
        "CREATE TABLE other (n)",
        "CREATE TEMP TABLE other (n)",
        "WITH gone AS (SELECT 1) DELETE FROM orders RETURNING n",
        "SELECT 1; DELETE FROM orders",
        "ATTACH DATABASE 'other.db' AS other",
        "VACUUM INTO 'copy.db'",
        "PRAGMA writable_schema = 1",
        "PRAGMA journal_mode = DELETE",
        "SELECT * FROM pragma_database_list",
        "SELECT load_extension('x')",
        "BEGIN",
        "REINDEX",
        "ANALYZE",
        "EXPLAIN DELETE FROM orders",
        "nonsense",
    ],
)
def test_nothing_but_reading(folder: Path, text: str) -> None:
    before = (folder / "shop.db").read_bytes()
    assert refusal(folder, text).metadata == {"field": "query"}
    assert (folder / "shop.db").read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"link.db", "shop.db"}


def test_a_query_ends_in_time(folder: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        list(query(folder, endless, seconds=0.1).rows())
    assert caught.value.reason == "DEADLINE_EXCEEDED"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///../private.db",
        "sqlite:////etc/passwd",
        "sqlite:///none.db",
        "sqlite:///.",
        "sqlite:///link.db",
    ],
)
def test_only_files_of_the_folder(folder: Path, url: str) -> None:
    assert "there is no file" in refusal(folder, "SELECT 1", url=url).message


def test_no_folder_no_files(folder: Path) -> None:
    assert "an operator allows" in refusal(None, "SELECT 1", url=f"sqlite:///{folder}/shop.db").message


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hidden@/db?host=/var/run/postgresql",
        "postgresql://user:hidden@db.example/db?host=127.0.0.1",
        "postgresql://user:hidden@db.example/db?service=x",
        "postgresql://user:hidden@db.example/db?passfile=/etc/passwd",
        "postgresql://user:hidden@db.example/db?sslrootcert=/etc/passwd",
        "postgresql://user:hidden@db.example/db?sslmode=allow",
        "postgresql://user:hidden@a.example,127.0.0.1/db",
        "postgresql://user:hidden@db.example",
        "postgresql://user:hidden@db.example:port/db",
        "mysql://user:hidden@db.example/db",
        "sqlite:///file:x?mode=rwc&uri=true",
        "sqlite://",
        "sqlite:///:memory:?x=hidden",
        "hidden",
    ],
)
def test_urls_that_lead_elsewhere_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(DomainError) as caught:
        query(None, "SELECT 1", url=url)
    assert caught.value.metadata == {"field": "secret"}
    assert "hidden" not in caught.value.message


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.5", "localhost", "2130706433", "[::1]", "db.example"])
def test_databases_inside_are_refused(host: str) -> None:
    found = Query(
        f"postgresql+asyncpg://user:hidden@{host}/db", "SELECT 1", NETWORKS, "", 5.0, lambda *_: ["127.0.0.1"]
    )
    with pytest.raises(DomainError, match="not a public address") as caught:
        list(found.rows())
    assert "hidden" not in caught.value.message
    assert "user" not in found.address


def test_a_query_is_needed_and_names_each_column_once(folder: Path) -> None:
    with pytest.raises(DomainError, match="query: is missing"):
        query(folder, " ")
    assert "twice" in refusal(folder, "SELECT n, note AS n FROM orders").message


def test_a_certificate_is_checked_against_the_name_of_the_host() -> None:
    """The connection goes to an address, which no certificate names."""
    context = _tls("verify-full", "db.example")
    assert isinstance(context, ssl.SSLContext)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    wrapped = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="93.184.216.34")
    assert wrapped.server_hostname == "db.example"
