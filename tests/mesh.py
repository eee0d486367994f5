"""A whole mesh, started as a person starts it, on ports and in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.access import people
from deploy.local import processes
from deploy.local.layout import Home, Ports, is_free


@dataclass
class Mesh:
    """One data folder and the command line on it."""

    home: Home
    ports: Ports

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports.http}"

    def argosy(self, *arguments: str, seconds: float = 240, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs `argosy`."""
        command = [str(Path(sys.executable).with_name("argosy")), *arguments]
        environment = {**os.environ, "ARGOSY_HOME": str(self.home.root)}
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"argosy {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done

    def typed(self, line: str, folder: Path, typed: str = "", seconds: float = 400) -> subprocess.CompletedProcess[str]:
        """Runs a line of shell as somebody types it in a folder, who logs in to this mesh from there.

        Args:
            typed: standard input.
        """
        environment = {
            **os.environ,
            "ARGOSY_HOME": str(self.home.root),
            "ARGOSY_URL": self.url,
            "XDG_CONFIG_HOME": str(folder / "config"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "200",
        }
        return subprocess.run(
            ["bash", "-c", line],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            input=typed,
        )

    def administrator_login(self) -> str:
        """The command that logs the first administrator in; the one-time token is spent by the first test that asks."""
        return f"argosy login --key {people(self.url, self.home.root)[0].admin}"

    def up(self) -> subprocess.CompletedProcess[str]:
        """Starts what is missing."""
        return self.argosy("up", "--port-base", str(self.ports.base), "--http-port", str(self.ports.http))

    def left(self) -> list[str]:
        """Processes of this mesh that live."""
        return [processes.command_line(identity.pid) for identity in processes.belonging(self.home.root, [])]


def new_mesh(name: str) -> Mesh:
    """A mesh that has not been started, in a short folder: unix sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix=f"argosy-{name}-"))
    # PostgreSQL's own user passes through it.
    folder.chmod(0o711)
    return Mesh(Home(folder / "home"), _free_ports())


def remove(mesh: Mesh) -> None:
    """Ends whatever is left of a mesh, and its folder."""
    processes.end(processes.belonging(mesh.home.root, []), grace=0)
    shutil.rmtree(mesh.home.root.parent, ignore_errors=True)


def _free_ports() -> Ports:
    """A base whose hundred ports nobody uses; below the ports that the kernel gives to clients. Processes that look for
    one at the same moment begin at different places.
    """
    bases = range(21_000, 32_000, 200)
    for number in range(len(bases)):
        base = bases[(os.getpid() + number) % len(bases)]
        ports = Ports(base=base, http=base + 99)
        if all(is_free(port) for _, port in ports.named()):
            return ports
    raise AssertionError("no free ports")
