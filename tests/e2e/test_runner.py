"""`argosy up|status|down|backup|restore` on a real mesh."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from argosy.client import Client, Policy, Unauthenticated

from deploy.demo.access import people
from deploy.local import processes
from deploy.local.credentials import Credentials
from deploy.local.layout import FORMAT, SERVICES, RunnerError
from deploy.local.supervisor import recorded
from tests.mesh import Mesh, new_mesh, remove

pytestmark = pytest.mark.timeout(400)


def _until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def _parts(mesh: Mesh) -> dict[str, dict[str, object]]:
    return {part["name"]: part for part in json.loads(mesh.argosy("status", "--json", check=False).stdout)}


def _all_ready(mesh: Mesh) -> bool:
    return all(part["state"] == "ready" for part in _parts(mesh).values())


def test_every_part_is_ready_and_bound_to_this_machine(mesh: Mesh) -> None:
    import psutil

    assert _all_ready(mesh)
    for identity in processes.belonging(mesh.home.root, []):
        line = processes.command_line(identity.pid)
        if "services." in line or "postgres -D" in line or "nats-server" in line:
            listening = [c for c in psutil.Process(identity.pid).net_connections("inet") if c.status == "LISTEN"]
            assert all(c.laddr[0] in ("127.0.0.1", "::ffff:127.0.0.1", "::1") for c in listening), line


def test_a_second_up_changes_nothing(mesh: Mesh) -> None:
    before = {name: part["pid"] for name, part in _parts(mesh).items()}
    mesh.up()
    assert {name: part["pid"] for name, part in _parts(mesh).items()} == before


def test_a_killed_supervisor_harms_nothing_and_the_next_up_adopts(mesh: Mesh) -> None:
    before = {name: part["pid"] for name, part in _parts(mesh).items()}
    supervisor = recorded(mesh.home.records / "supervisor.json")
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    _until(lambda: not supervisor.alive)
    assert _all_ready(mesh)
    mesh.up()
    assert {name: part["pid"] for name, part in _parts(mesh).items()} == before


@pytest.mark.parametrize("name", ["postgres", "nats", "identity", "dataset-jobs", "gateway"])
def test_a_killed_part_comes_back_by_itself(mesh: Mesh, name: str) -> None:
    before = recorded(mesh.home.records / f"{name}.json")
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    _until(lambda: recorded(mesh.home.records / f"{name}.json") not in (None, before))
    _until(lambda: _all_ready(mesh))


def test_the_administrator_comes_from_the_token_and_the_token_works_once(mesh: Mesh) -> None:
    keys, _ = people(mesh.url, mesh.home.root)
    assert people(mesh.url, mesh.home.root) == (keys, True)
    token = (
        (mesh.home.secrets / "bootstrap-token").read_text() if (mesh.home.secrets / "bootstrap-token").exists() else "x"
    )
    with Client(mesh.url, "", Policy(patience=30)) as client, pytest.raises(Unauthenticated):
        client.identity.bootstrap(token=token, user_id="thief")


def test_backup_and_restore_give_an_equal_mesh(mesh: Mesh, tmp_path: Path) -> None:
    keys, _ = people(mesh.url, mesh.home.root)
    with Client(mesh.url, keys.alice, Policy(patience=30)) as alice:
        made = alice.dataset.create_dataset(parent="orgs/demo", dataset={"display_name": "kept"})
        alice.upload("orgs/demo", _rows(tmp_path), upload_id="kept")
    _call_off_the_sweep(mesh)
    before = _settled_contents(mesh)
    mesh.argosy("backup", str(tmp_path / "backup"))
    assert "exists" in mesh.argosy("backup", str(tmp_path / "backup"), check=False).stderr
    copy = new_mesh("restored")
    try:
        copy.argosy("restore", str(tmp_path / "backup"))
        refused = copy.argosy("restore", str(tmp_path / "backup"), check=False)
        assert refused.returncode == 1
        assert "not empty" in refused.stderr
        copy.up()
        after = _contents(copy)
        assert {table for table in before if before[table] != after.get(table)} == set()
        assert after.keys() == before.keys()
        assert _blobs(copy) == _blobs(mesh) != {}
        with Client(copy.url, keys.alice, Policy(patience=30)) as alice:
            again = alice.dataset.get_dataset(name=made.name)
            assert (again.uid, again.etag, again.display_name) == (made.uid, made.etag, "kept")
            assert alice.dataset.get_upload(name="orgs/demo/uploads/kept").offset > 0
        copy.argosy("down")
        assert copy.left() == []
    finally:
        remove(copy)


# Where the bus and the relay stand; a restored mesh sends and reads anew what was on the way.
_ON_THE_WAY = ("publish_time", "cursor", "last", "update_time")
_TABLES = """
    SELECT table_name, string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position) AS columns
    FROM information_schema.columns
    WHERE table_schema = 'public'
      AND NOT (table_name IN ('outbox', 'outbox_cursor', 'subscriptions') AND column_name = ANY($1))
    GROUP BY table_name
"""


async def _connected(mesh: Mesh, service: str) -> asyncpg.Connection:
    password = Credentials(mesh.home).database["postgres"]
    return await asyncpg.connect(
        host="127.0.0.1", port=mesh.ports.postgres, user="postgres", password=password, database=service
    )


def _call_off_the_sweep(mesh: Mesh) -> None:
    """What runs have given up goes minutes later, here or in the copy: that is no difference that a restore makes."""

    async def forget() -> None:
        connection = await _connected(mesh, "training")
        try:
            await connection.execute("DELETE FROM given_up")
        finally:
            await connection.close()

    asyncio.run(forget())


def _contents(mesh: Mesh) -> dict[str, tuple[int, str]]:
    """database.table -> how many rows it has, and a digest of them."""

    async def read() -> dict[str, tuple[int, str]]:
        found: dict[str, tuple[int, str]] = {}
        for name in SERVICES:
            connection = await _connected(mesh, name)
            try:
                for table, columns in await connection.fetch(_TABLES, _ON_THE_WAY):
                    row = await connection.fetchrow(
                        f"SELECT count(*), md5(string_agg(r::text, '' ORDER BY r::text)) FROM"
                        f" (SELECT {columns} FROM {table}) r"
                    )
                    assert row is not None
                    found[f"{name}.{table}"] = (row[0], row[1] or "")
            finally:
                await connection.close()
        return found

    return asyncio.run(read())


def _settled_contents(mesh: Mesh) -> dict[str, tuple[int, str]]:
    """The contents once nothing is on its way any more, such as entries of the usage ledger."""
    found = _contents(mesh)
    while True:
        time.sleep(3.0)
        earlier, found = found, _contents(mesh)
        if found == earlier:
            return found


def _blobs(mesh: Mesh) -> dict[str, str]:
    root = mesh.home.root / "blobs"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def _rows(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(100)))
    return path


def test_a_backup_that_was_changed_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    from deploy.local import archive
    from deploy.local.layout import Home

    archive.backup(mesh.home, tmp_path / "backup", lambda _line: None)
    victim = tmp_path / "backup" / "databases" / "identity.dump"
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    with pytest.raises(RunnerError, match=r"identity\.dump"):
        archive.restore(Home(tmp_path / "new"), tmp_path / "backup", lambda _line: None)
    assert not (tmp_path / "new").exists()


def test_a_port_that_is_taken_is_named_with_who_has_it() -> None:
    other = new_mesh("taken")
    try:
        with socket.socket() as server:
            # A mesh of an earlier test may have closed connections on this port a minute ago.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", other.ports.http))
            server.listen()
            done = other.argosy(
                "up", "--port-base", str(other.ports.base), "--http-port", str(other.ports.http), check=False
            )
        assert done.returncode == 1
        assert str(other.ports.http) in done.stderr
        assert f"pid {os.getpid()}" in done.stderr.replace("\n", " ")
        assert other.left() == []
    finally:
        remove(other)


def test_a_folder_of_a_newer_format_is_refused() -> None:
    newer = new_mesh("newer")
    try:
        newer.home.root.mkdir()
        (newer.home.root / "FORMAT").write_text(f"{FORMAT + 1}\n")
        done = newer.argosy("up", check=False)
        assert done.returncode == 1
        assert "newer Argosy" in done.stderr.replace("\n", " ")
    finally:
        remove(newer)


def test_down_where_nothing_runs_says_so() -> None:
    nothing = new_mesh("nothing")
    try:
        assert "nothing was running" in nothing.argosy("down").stdout
    finally:
        remove(nothing)
