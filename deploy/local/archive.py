"""Backup and restore of a whole mesh: a folder with every database, blob, key and certificate, and the digest of each
file.

The databases are dumped before the blobs are copied, and blobs are never changed, so that every blob that a row names
is in the backup, also when the mesh works meanwhile. The bus is left out: the truth is in the databases.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from deploy.local import mesh, postgres, processes
from deploy.local.credentials import Credentials
from deploy.local.layout import FORMAT, SERVICES, Home, Ports, RunnerError, write_atomically

_MANIFEST = "manifest.json"
# Copied as they are. The databases come by pg_dump, logs and the bus are not truth.
_FOLDERS = ("blobs", "pki", "secrets", "aiops", "gateway")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a backup holds.

    Attributes:
        format: of the data folder.
        argosy: version that wrote it.
        size: bytes of all files.
        files: path -> SHA-256, in hexadecimal.
    """

    format: int
    argosy: str
    size: int
    files: dict[str, str]


def backup(home: Home, target: Path, say: mesh.Say) -> Manifest:
    """Writes a backup of a mesh that runs or not.

    Args:
        target: folder; appears only once it is whole.
        say: gets a line a step.
    Raises:
        RunnerError: there is no mesh, the target exists, or a database cannot be read.
    """
    if not (home.root / "FORMAT").exists():
        raise RunnerError(f"there is no mesh in {home.root}")
    if target.exists():
        raise RunnerError(f"{target} exists; a backup needs a new folder")
    home.check_format()
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        (draft / "databases").mkdir(parents=True, mode=0o700)
        draft.chmod(0o700)
        with _database(home) as port:
            for name in SERVICES:
                _dump(home, port, name, draft / "databases" / f"{name}.dump")
                say(f"database {name}")
        for folder in _FOLDERS:
            _copy(home.root / folder, draft / folder)
            say(folder)
        ports = home.ports()
        if ports:
            write_atomically(draft / "ports.json", json.dumps(asdict(ports)))
        manifest = _describe(draft)
        write_atomically(draft / _MANIFEST, json.dumps(asdict(manifest), indent=1) + "\n")
        draft.rename(target)
    except OSError as error:
        raise RunnerError(f"the backup cannot be written to {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def restore(home: Home, source: Path, say: mesh.Say) -> None:
    """Fills a data folder that does not exist yet, or is empty.

    Raises:
        RunnerError: the folder holds something, or the backup is not whole.
    """
    if home.root.exists() and any(home.root.iterdir()):
        raise RunnerError(f"{home.root} is not empty; a restore needs a new folder (--home)")
    manifest = _check(source)
    say(f"{len(manifest.files)} files are whole")
    home.prepare()
    for folder in _FOLDERS:
        _copy(source / folder, home.root / folder)
        say(folder)
    if (source / "ports.json").exists():
        home.keep_ports(Ports(**json.loads((source / "ports.json").read_text())))
    with _database(home) as port:
        credentials = Credentials(home)
        roles = {name: credentials.database[name] for name in SERVICES}
        postgres.create_service_databases_now(port, credentials.database["postgres"], roles)
        for name in SERVICES:
            _load(home, port, name, source / "databases" / f"{name}.dump")
            say(f"database {name}")


@contextmanager
def _database(home: Home) -> Generator[int]:
    """Port of the mesh's own PostgreSQL, which is started for the time of the block if it does not run."""
    ports = home.ports() or Ports()
    running = next((part for part in mesh.status(home) if part.name == "postgres" and part.pid), None)
    if running:
        yield ports.postgres
        return
    password = Credentials(home).database["postgres"]
    port = processes.free_port()
    server = postgres.Server(home.postgres, port, password, home.logs / "postgres.log")
    server.start()
    try:
        yield port
    finally:
        server.stop()


def _dump(home: Home, port: int, name: str, target: Path) -> None:
    _run(home, port, ["pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={target}", name])


def _load(home: Home, port: int, name: str, source: Path) -> None:
    # The role of the service becomes the owner of everything, as if its own migrations had made it.
    _run(home, port, ["pg_restore", "--exit-on-error", "--no-owner", f"--role={name}", f"--dbname={name}", str(source)])


def _run(home: Home, port: int, command: list[str]) -> None:
    program = str(postgres.binaries() / command[0])
    address = ["--host=127.0.0.1", f"--port={port}", f"--username={postgres.ADMIN}", "--no-password"]
    environment = {**os.environ, "PGPASSWORD": Credentials(home).database["postgres"]}
    done = subprocess.run(
        [program, *address, *command[1:]], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RunnerError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")


def _copy(source: Path, target: Path) -> None:
    """Copies a tree. A file that goes away meanwhile (telemetry is compacted) is not missed."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):
        copied = target / path.relative_to(source)
        try:
            if path.is_dir():
                copied.mkdir(exist_ok=True)
            else:
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copied)
        except FileNotFoundError:
            continue
    if source.exists():
        target.chmod(source.stat().st_mode & 0o777)


def _files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _MANIFEST)


def _describe(folder: Path) -> Manifest:
    files = {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}
    size = sum(path.stat().st_size for path in _files(folder))
    return Manifest(FORMAT, version("argosy"), size, files)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check(source: Path) -> Manifest:
    try:
        manifest = Manifest(**json.loads((source / _MANIFEST).read_text()))
    except (OSError, ValueError, TypeError):
        raise RunnerError(f"{source} holds no backup: its {_MANIFEST} cannot be read") from None
    if manifest.format > FORMAT:
        raise RunnerError(f"the backup has format {manifest.format}, this Argosy knows up to {FORMAT}")
    for name, digest in manifest.files.items():
        path = source / name
        if not path.is_file() or _digest(path) != digest:
            raise RunnerError(f"the backup is not whole: {name} is missing or was changed")
    return manifest
