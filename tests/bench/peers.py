"""Environments of the peers, each its own, under build/peers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.bench.report import ROOT

PEERS = ROOT / "build" / "peers"


def install(name: str, requirements: Iterable[str]) -> Path:
    """The interpreter of a peer's environment, made if it is not there. Exits with pip's words if it cannot be made."""
    folder = PEERS / name
    python = folder / "bin" / "python"
    marker = folder / ".installed"
    wanted = "\n".join(requirements)
    if not marker.exists() or marker.read_text() != wanted:
        print(f"installing {wanted.splitlines()[0]} into {folder.relative_to(ROOT)} (minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        done = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", *requirements], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{name} cannot be installed:\n{done.stderr[-2000:]}")
        marker.write_text(wanted)
    return python
