"""The Ray head of one machine: how it is started, and how it is known to answer.

`ray start --head --block` is one process group: the processes that it starts die with it, also when it is killed
(`--block` makes Ray ask the kernel for that). Its ports are open on every interface, because Ray has no way to bind
loopback; so token authentication is always on, with the token in a file of mode 0600.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# `/session_<date>_<pid>/sockets/plasma_store` follows the folder, and a Unix socket's path has at most 107 characters.
_LONGEST_FOLDER = 40
_OBJECT_STORE_BYTES = 200_000_000
_KEPT_SESSIONS = 2
# Nothing phones home, and nothing asks for a network.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}


@dataclass(frozen=True)
class RayHead:
    """A Ray head on this machine.

    Args:
        folder: Ray's files: sessions, logs, sockets and the token.
        port: Port of its control service (GCS); the three after it are taken too.
        num_cpus: CPUs that actors may ask for; book-keeping, not a limit.
    """

    folder: Path
    port: int
    num_cpus: int = 8

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def session_folder(self) -> Path:
        """Where Ray keeps its sessions: in `folder`, or in /tmp when that path is too long for a socket."""
        path = self.folder.absolute()
        if len(str(path)) <= _LONGEST_FOLDER:
            return path
        return Path("/tmp") / f"argosy-ray-{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"  # noqa: S108

    def environment(self) -> dict[str, str]:
        """What the head, and every process that speaks to it, must have in its environment."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file), **_QUIET}

    def command(self) -> list[str]:
        """The command that runs the head until it is ended."""
        ray = Path(sys.executable).with_name("ray")
        return [
            str(ray), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=false",
            "--no-monitor", "--include-log-monitor=false", f"--port={self.port}",
            f"--ray-client-server-port={self.port + 1}",
            f"--dashboard-port={self.port + 2}", f"--dashboard-agent-listen-port={self.port + 3}",
            f"--num-cpus={self.num_cpus}", f"--object-store-memory={_OBJECT_STORE_BYTES}",
            f"--temp-dir={self.session_folder}",
        ]  # fmt: skip

    def prepare(self) -> None:
        """Makes the folders and the token, and removes what older sessions left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.session_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.session_folder.stat().st_uid != os.getuid():
            raise RuntimeError(f"{self.session_folder} belongs to another user; remove it")
        if not self.token_file.exists():
            descriptor = os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
        sessions = sorted(path for path in self.session_folder.glob("session_2*") if path.is_dir())
        for old in sessions[:-_KEPT_SESSIONS]:
            shutil.rmtree(old, ignore_errors=True)

    def answers(self) -> bool:
        """Whether something listens on its port."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False

    def start(self, log: Path | None = None, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts the head in a session of its own.

        Args:
            log: File for its output; None: thrown away.
            extra: More environment, which Ray's workers inherit. No secrets.
        """
        self.prepare()
        environment = {**os.environ, **self.environment(), **(extra or {})}
        with (log or Path(os.devnull)).open("ab") as output:
            return subprocess.Popen(
                self.command(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def wait(self, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
        """Waits until it listens.

        Raises:
            RuntimeError: It ended, or does not listen in time.
        """
        deadline = time.monotonic() + seconds
        while not self.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the Ray head on port {self.port} did not start; see {self.session_folder}")
            time.sleep(0.1)


def stop(process: subprocess.Popen[bytes], seconds: float = 10.0) -> None:
    """Ends a head and everything that it started; returns when its group is gone.

    Only the leader gets SIGTERM and drains the node (5 s): a SIGTERM to the whole group leaves it waiting for ever.
    """
    with suppress(ProcessLookupError):
        process.terminate()
    if not _gone(process, seconds):
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a head and everything that it started, as a power cut would."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    _gone(process, 10.0)


def _gone(process: subprocess.Popen[bytes], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        process.poll()
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@contextmanager
def running(head: RayHead, log: Path | None = None) -> Generator[subprocess.Popen[bytes]]:
    """A head for the time of the block."""
    process = head.start(log)
    try:
        head.wait(process)
        yield process
    finally:
        stop(process)


def main() -> None:
    """Runs a head in the foreground: `python -m deploy.local.ray FOLDER PORT`."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--num-cpus", type=int, default=8)
    arguments = parser.parse_args()
    head = RayHead(arguments.folder, arguments.port, arguments.num_cpus)
    head.prepare()
    os.environ.update(head.environment())
    os.execv(head.command()[0], head.command())  # noqa: S606 - our own command


if __name__ == "__main__":
    main()
