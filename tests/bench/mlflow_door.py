"""MLflow's own client against the gateway, and against MLflow's own server on SQLite.

    python -m tests.bench.mlflow_door            # writes build/bench/mlflow_door.json

`log_batch` of a thousand points, again and again, from one client in an environment of its own (`MLFLOW`), to both
servers in turn; then the client goes through what it can do (`mlflow_door_client.py`), and TensorBoard's own reader
reads the event files that the gateway gives.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.local import postgres
from tests.bench.peers import install
from tests.bench.report import ROOT, save
from tests.integration.training.mlflow_door import mlflow_door

MLFLOW = ("mlflow==3.17.2", "tensorboard==2.20.0", "scikit-learn")
CLIENT = str(ROOT / "tests" / "bench" / "mlflow_door_client.py")


def environment(home: Path, url: str) -> dict[str, str]:
    """Of the client: nothing in it but the address and the key."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_TRACKING_TOKEN": "ak_acme",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def peer_server(python: Path, folder: Path) -> Generator[str]:
    """MLflow's server as its documentation starts it, with one worker and SQLite."""
    port = free_port()
    command = [str(python), "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/files"]
    log = (folder / "server.log").open("wb")
    process = subprocess.Popen(command, cwd=folder, env=environment(folder, ""), stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


async def client(python: Path, home: Path, url: str, *arguments: str) -> Any:
    """What the client prints, as JSON."""
    process = await asyncio.create_subprocess_exec(
        str(python), CLIENT, *arguments, cwd=home, env=environment(home, url), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"the client failed on {url} {arguments}")
    return json.loads(output.splitlines()[-1])


async def measure(folder: Path, python: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    server = postgres.Server(folder / "pg", free_port(), secrets.token_urlsafe(), folder / "postgres.log")
    server.start()
    (folder / "mesh").mkdir()
    (folder / "peer").mkdir()
    rounds: list[dict[str, float]] = []
    try:
        async with mlflow_door(folder / "mesh", server) as (ours, _):
            with peer_server(python, folder / "peer") as theirs:
                for number in range(arguments.rounds):
                    row: dict[str, float] = {}
                    for side, url in (("ours", ours), ("mlflow", theirs)):
                        row[side] = await client(python, folder, url, "batches", str(arguments.batches))
                    rounds.append(row)
                    print(f"round {number + 1}: {row['ours']:,.0f} points/s, MLflow {row['mlflow']:,.0f}", flush=True)
            steps = await client(python, folder, ours, "scenario")
            print("\n".join(steps), flush=True)
    finally:
        server.stop()
    return {"rounds": rounds, "steps": steps}


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=50)
    arguments = parser.parse_args()
    python = install("mlflow-door", MLFLOW)
    with tempfile.TemporaryDirectory(prefix="argosy-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        found = asyncio.run(measure(folder, python, arguments))
    ours, theirs = (statistics.median(row[side] for row in found["rounds"]) for side in ("ours", "mlflow"))
    report = {
        "name": "mlflow_door",
        "unit": "points/s",
        "ours": round(ours),
        "peer": round(theirs),
        "ratio": round(ours / theirs, 2),
        "peer_name": "mlflow server, SQLite, one worker",
        "rounds": found["rounds"],
        "figures": {"steps_of_the_client": len(found["steps"]), "points_a_batch": 1000},
        "on": {
            "ours": "gateway, gRPC with mutual TLS, tokens, validation, request ids, row-level security; PostgreSQL",
            "peer": "HTTP, no authentication, SQLite",
        },
        "versions": {"python": platform.python_version(), "mlflow": MLFLOW[0]},
    }
    print(f"{ours:,.0f} points/s, MLflow {theirs:,.0f}: {save(report)}")


if __name__ == "__main__":
    main()
