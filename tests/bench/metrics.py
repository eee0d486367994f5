"""The metric store over gRPC with the real database, beside MLflow's own store on the same PostgreSQL.

    python -m tests.bench.metrics            # writes build/bench/metrics.json

Points go in through `ReportRunMetrics`, twenty thousand a call: ten metrics of a run, the runs in turn. A curve of a
million points comes back thinned out to a thousand. Pages of fifty of 100,000 runs are asked for, filtered, sorted by
results, parameters, labels and states. MLflow's store gets the same points with `log_batch` in an environment of its
own, without its server; rounds are interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import platform
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from argosy.training.v1 import run_metrics_pb2, run_service_pb2_grpc, training_service_pb2_grpc
from argosy.training.v1 import run_service_pb2 as pb
from argosy.training.v1 import training_service_pb2 as training
from sqlalchemy import insert, text

from deploy.local import postgres
from libs.common.db.repository import resource_row
from libs.common.ids import uuid7
from libs.common.testing.mesh import Mesh
from libs.common.testing.service import running_service
from services.training.app import DEFINITION
from services.training.domain.spec import Method, Phase, TrainingSpec
from services.training.domain.trainings import Training, TrainingRun
from services.training.store import tables
from services.training.store.repositories import TrainingRuns, Trainings
from services.training.store.run_search import terms_of
from tests.bench.clean import install
from tests.bench.report import ROOT, save

ORG = "orgs/acme"
TRAINING = f"{ORG}/trainings/t0"
MLFLOW = ("mlflow-skinny==3.17.2", "sqlalchemy", "alembic", "psycopg2-binary", "numpy", "pandas")
START = 1_790_000_000_000_000
RUNS, KEYS, STEPS = 4, 10, 2_000
# Of a round. The peer gets a tenth of it.
CALLS = 50
PEER_RUNS = 1_000
_TRAININGS = 20


class Caller:
    """The service as one editor."""

    def __init__(self, mesh: Mesh) -> None:
        self.channel = mesh.channel("training")
        self._metadata = mesh.metadata(subject="users/u1", role=3)
        self._stubs = (
            run_service_pb2_grpc.RunServiceStub(self.channel),
            training_service_pb2_grpc.TrainingServiceStub(self.channel),
        )

    async def __call__(self, rpc: str, request: Any) -> Any:
        stub = next(stub for stub in self._stubs if hasattr(stub, rpc))
        return await getattr(stub, rpc)(request, metadata=self._metadata, timeout=60)


class Peer:
    """MLflow's store in a process of its own."""

    def __init__(self, python: Path, url: str) -> None:
        script = str(ROOT / "tests" / "bench" / "metrics_peer.py")
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            [str(python), script, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        assert self._read() == "ready"

    def ask(self, operation: str, **arguments: int) -> float:
        """Seconds that an operation took."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit("MLflow's store ended; its words are above")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


async def p99(call: Callable[[int], Awaitable[Any]], calls: int) -> tuple[float, float]:
    """Median and 99th percentile in milliseconds, one call after the other."""
    seconds = []
    for number in range(calls):
        start = time.perf_counter()
        await call(number)
        seconds.append(time.perf_counter() - start)
    return round(1000 * statistics.median(seconds), 1), round(1000 * float(np.percentile(seconds, 99)), 1)


def new_run(number: int) -> TrainingRun:
    """A run as people have them, with results and parameters that tell it from others."""
    phases = (
        Phase(Method.PRETRAIN, 1000, 32, 10 ** -(2 + number % 7 / 3)),
        Phase(Method.SFT, 100 + number % 50, 32, 10 ** -(3 + number % 11 / 5), prompt_template="{text}\nPackage:"),
    )
    names = ("first_loss", "last_loss", "heldout_loss_before", "heldout_loss_after", "tokens", "tokens_per_second")
    results = {
        f"{phase}.{name}": (number * 7919 % 100_003) / 50_000 + at
        for phase in ("pretrain", "sft")
        for at, name in enumerate(names)
    }
    began = datetime.now(UTC) - timedelta(days=1000) + timedelta(minutes=number)
    return TrainingRun(
        uid=uuid7(),
        name=f"{ORG}/trainings/t{number % _TRAININGS}/runs/{number + 1}",
        create_time=began,
        update_time=began,
        creator=f"users/u{number % 50}",
        state=("SUCCEEDED", "SUCCEEDED", "SUCCEEDED", "FAILED", "CANCELLED")[number % 5],
        labels={"team": f"t{number % 100}"},
        spec=TrainingSpec(phases, seed=number),
        dataset_version=f"{ORG}/datasets/d{number % 30}/versions/1",
        model_project=f"{ORG}/modelProjects/m",
        results=results,
    )


async def fill(app: Any, count: int) -> None:
    """So many runs of a few trainings."""
    async with app.database.system() as uow:
        for number in range(_TRAININGS):
            one = new_run(number)
            fields = {"uid": uuid7(), "create_time": one.create_time, "update_time": one.create_time}
            await Trainings(uow).insert(Training(name=f"{ORG}/trainings/t{number}", spec=one.spec, **fields))
    for start in range(0, count, 1000):
        async with app.database.system() as uow:
            repository, connection = TrainingRuns(uow), await uow.connection()
            made = [new_run(number) for number in range(start, min(count, start + 1000))]
            rows = [{**resource_row(one), **repository.to_row(one), "version": 1} for one in made]
            await connection.execute(insert(tables.training_runs), rows)
            terms = [(one.uid, term, value) for one in made for term, value in terms_of(one).items()]
            uids, names, values = (list(column) for column in zip(*terms, strict=True))
            await connection.execute(_FILL, {"uids": uids, "terms": names, "values": values})
        print(f"\r{start + 1000:,} of {count:,} runs", end="", flush=True)
    print(flush=True)
    # As the server does by itself within minutes; otherwise it may do so beside the pages.
    async with app.database.engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("VACUUM (ANALYZE)"))


_FILL = text(
    "INSERT INTO run_terms SELECT * FROM unnest(CAST(:uids AS uuid[]), CAST(:terms AS bigint[]), "
    "CAST(:values AS float8[]))"
)


def batch(run: int, call: int) -> pb.ReportRunMetricsRequest:
    """Ten metrics of a run, two thousand steps each, behind those of the call before."""
    steps = range(call * STEPS, (call + 1) * STEPS)
    times = [START + 1000 * step for step in steps]
    noise = np.random.default_rng(call).normal(0, 0.05, (KEYS, STEPS))
    return pb.ReportRunMetricsRequest(
        name=new_name(run),
        series=[
            run_metrics_pb2.MetricSeries(
                key=f"phase.m{key}", steps=steps, times=times, values=3 / (1 + np.array(steps) / 1000) + noise[key]
            )
            for key in range(KEYS)
        ],
        request_id=f"r{run}-{call}",
    )


def new_name(run: int) -> str:
    return f"{ORG}/trainings/t{run % _TRAININGS}/runs/{run + 1}"


async def ingest(caller: Caller, number: int) -> float:
    """Points a second of one round."""
    requests = [batch(number * RUNS + call % RUNS, call // RUNS) for call in range(CALLS)]
    start = time.perf_counter()
    gate = asyncio.Semaphore(4)

    async def send(request: pb.ReportRunMetricsRequest) -> None:
        async with gate:
            await caller("ReportRunMetrics", request)

    await asyncio.gather(*(send(request) for request in requests))
    return CALLS * KEYS * STEPS / (time.perf_counter() - start)


async def read_curve(caller: Caller, points: int, calls: int) -> tuple[float, float]:
    """Median and P99 of a curve of so many points."""
    name, part = new_name(1000), 50_000
    values = 3 / (1 + np.arange(points) / 1000) + np.random.default_rng(1).normal(0, 0.05, points)
    for first in range(0, points, part):
        steps = range(first, first + part)
        series = run_metrics_pb2.MetricSeries(key="sft.loss", steps=steps, values=values[first : first + part])
        await caller("ReportRunMetrics", pb.ReportRunMetricsRequest(name=name, series=[series]))
    request = pb.GetRunCurvesRequest(parent=ORG, runs=[name], keys=["sft.loss"], max_points=1000)
    answer = await caller("GetRunCurves", request)
    assert answer.curves[0].point_count == points
    assert max(answer.curves[0].values) == values.max()
    return await p99(lambda _: caller("GetRunCurves", request), calls)


async def list_runs(caller: Caller, calls: int) -> dict[str, float]:
    """P99 of pages that are filtered and sorted by whatever there is."""
    queries = {
        "newest": ("", ""),
        "by_result": ("", "results.sft.last_loss"),
        "by_parameter": ("", "spec.sft.learning_rate desc"),
        "half_by_result": ("results.sft.last_loss < 2", "results.sft.heldout_loss_after"),
        "few_by_result": ("results.sft.last_loss < 1.5 AND labels.team = t42", "results.pretrain.tokens desc"),
        "three_conditions": ("state = SUCCEEDED AND spec.seed > 500 AND results.sft.tokens > 4.2", "create_time"),
        "not_failed": ("state != FAILED AND training = t7", "results.pretrain.last_loss desc"),
    }
    found: dict[str, float] = {}
    for name, (condition, order) in queries.items():
        request = training.ListTrainingRunsRequest(
            parent=f"{ORG}/trainings/-", page_size=50, filter=condition, order_by=order
        )
        token = ""

        async def page(number: int, request: Any = request) -> None:
            # Forward, and after some pages from the beginning again.
            nonlocal token
            request.page_token = token if number % 10 else ""
            answer = await caller("ListTrainingRuns", request)
            assert answer.training_runs or request.page_token
            token = answer.next_page_token

        _, found[f"runs_{name}_p99_ms"] = await p99(page, calls)
    return found


async def measure(folder: Path, arguments: argparse.Namespace, python: Path) -> dict[str, Any]:
    """All figures."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = postgres.Server(folder / "pg", port, secrets.token_urlsafe(), folder / "postgres.log")
    server.start()
    peer: Peer | None = None
    try:
        url = await server.create_service_database("training", secrets.token_urlsafe())
        other = await server.create_service_database("mlflow", secrets.token_urlsafe())
        peer = Peer(python, other.replace("+asyncpg", "+psycopg2"))
        mesh = Mesh(folder)
        definition = dataclasses.replace(DEFINITION, jwks=lambda _: mesh.jwks())
        async with running_service(definition, mesh, database_url=url, blob_root=f"file://{folder}/blobs") as service:
            caller = Caller(mesh)
            await fill(service.app, arguments.runs)
            rounds = []
            for number in range(arguments.rounds):
                ours = await ingest(caller, number)
                steps = STEPS * CALLS // 10 // KEYS
                theirs = KEYS * steps / await asyncio.to_thread(peer.ask, "log", keys=KEYS, steps=steps)
                rounds.append({"ours": round(ours), "mlflow": round(theirs)})
                print(f"round {number + 1}: {ours:,.0f} points/s, MLflow {theirs:,.0f}", flush=True)
            median, worst = await read_curve(caller, arguments.points, arguments.calls)
            pages = await list_runs(caller, arguments.calls)
            peer_points = arguments.points // 50
            figures: dict[str, Any] = {"curve_1e6_ms": median, "curve_1e6_p99_ms": worst, **pages}
            figures["runs_page_p99_ms"] = max(pages.values())
            figures |= {"runs": arguments.runs, "curve_points": arguments.points}
            figures["peer_curve_ms"] = round(1000 * await asyncio.to_thread(peer.ask, "curve", steps=peer_points), 1)
            figures["peer_curve_points"] = peer_points
            await asyncio.to_thread(peer.ask, "runs", count=PEER_RUNS)
            searched = [await asyncio.to_thread(peer.ask, "search") for _ in range(20)]
            figures |= {"peer_page_ms": round(1000 * statistics.median(searched), 1), "peer_page_runs": PEER_RUNS}
            await caller.channel.close()
            return {"rounds": rounds, "figures": figures}
    finally:
        if peer is not None:
            peer.close()
        server.stop()


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=100)
    arguments = parser.parse_args()
    python = install("mlflow", MLFLOW)
    with tempfile.TemporaryDirectory(prefix="argosy-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        found = asyncio.run(measure(folder, arguments, python))
    ours, theirs = (statistics.median(row[side] for row in found["rounds"]) for side in ("ours", "mlflow"))
    report = {
        "name": "metrics",
        "unit": "points/s",
        "ours": ours,
        "peer": theirs,
        "ratio": round(ours / theirs, 1),
        "peer_name": "MLflow's SqlAlchemyStore.log_batch, without its server",
        **found,
        "on": {
            "ours": "gRPC with mutual TLS, tokens, validation, request ids, row-level security; PostgreSQL",
            "peer": "in-process, no server; the same PostgreSQL",
        },
        "versions": {"python": platform.python_version(), "mlflow": MLFLOW[0]},
    }
    for key, value in found["figures"].items():
        print(f"{key:<28} {value:>12,}")
    print(f"{ours:,.0f} points/s, MLflow {theirs:,.0f}: {save(report)}")


if __name__ == "__main__":
    main()
