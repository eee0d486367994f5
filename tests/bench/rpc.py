"""What the interceptor chain costs: echo through all of it beside the same echo on bare grpc.aio, both with mutual TLS.

    python -m tests.bench.rpc            # writes build/bench/rpc.json

Each server is a process of its own on the first core, the load generator runs on the second; rounds alternate, so that
whatever else the machine does hits both. The echo is `TaskService.GetTask`, which answers with the name that it got.
"""

from __future__ import annotations

import asyncio
import datetime
import gc
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import psutil
from argosy.common.v1 import task_pb2, task_service_pb2

from libs.common.auth.tokens import JwksCache, SigningKey, TokenVerifier
from libs.common.clock import SYSTEM_CLOCK
from libs.common.pki import Certificates
from libs.common.rpc.method import Host, Load
from libs.common.rpc.server import Server
from libs.common.testing.mesh import Mesh
from tests.bench.report import ROOT, save

ROUNDS = 12
SECONDS = 1.5
CALLERS = 16
PATH = "/argosy.common.v1.TaskService/GetTask"
TASKS = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
TASK = "orgs/acme/dataset/tasks/echo"


class Echo:
    """TaskService with one RPC that does something."""

    async def get_task(self, request: task_service_pb2.GetTaskRequest, call: Any) -> task_pb2.Task:
        return task_pb2.Task(name=request.name)

    async def list_tasks(self, request: Any, call: Any) -> Any: ...

    async def list_task_logs(self, request: Any, call: Any) -> Any: ...

    async def list_task_metrics(self, request: Any, call: Any) -> Any: ...

    async def cancel_task(self, request: Any, call: Any) -> Any: ...

    async def retry_task(self, request: Any, call: Any) -> Any: ...

    async def watch_task(self, request: Any, call: Any) -> Any:
        yield task_pb2.TaskEvent()


def _telemetry() -> None:
    """Spans and metrics with everything but the sending: the receiver is another process with another bill."""
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Nowhere(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    tracers = TracerProvider()
    tracers.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=8192, schedule_delay_millis=500))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))


async def _serve_ours(folder: Path) -> None:
    _telemetry()
    key = SigningKey.from_pem((folder / "signing.pem").read_bytes())

    async def keys() -> list[dict[str, str]]:
        return [key.jwk()]

    verifier = TokenVerifier(JwksCache(None, keys), "dataset", now=lambda: SYSTEM_CLOCK.now().timestamp())
    host = Host("dataset", None, SYSTEM_CLOCK, verifier, None, Load(256, 256))
    server = Server(host, Certificates(folder / "pki", "dataset"), "127.0.0.1:0")
    server.mount([TASKS], [Echo()])
    await server.start()
    await _serve(server.raw, server.port)


async def _serve_bare(folder: Path) -> None:
    async def get_task(request: task_service_pb2.GetTaskRequest, context: object) -> task_pb2.Task:
        return task_pb2.Task(name=request.name)

    handler = grpc.unary_unary_rpc_method_handler(
        get_task, task_service_pb2.GetTaskRequest.FromString, task_pb2.Task.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(TASKS.full_name, {"GetTask": handler}),))
    pair = Certificates(folder / "pki", "dataset").current
    credentials = grpc.ssl_server_credentials([(pair.key, pair.certificate)], pair.authority, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    await _serve(server, port)


async def _serve(server: grpc.aio.Server, port: int) -> None:
    gc.collect()
    gc.freeze()
    print(port, flush=True)
    # The parent holds the other end: when it goes, so does this server.
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


class _Side:
    """One server process and what was measured of it."""

    def __init__(self, name: str, folder: Path, mesh: Mesh, core: int) -> None:
        command = [sys.executable, "-m", "tests.bench.rpc", name, str(folder)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        for thread in psutil.Process(self.process.pid).threads():
            os.sched_setaffinity(thread.id, {core})
        self.usage = psutil.Process(self.process.pid)
        self.channel = mesh.channel("dataset", "gateway", address=f"127.0.0.1:{self.port}")
        self.call = self.channel.unary_unary(
            PATH,
            request_serializer=task_service_pb2.GetTaskRequest.SerializeToString,
            response_deserializer=task_pb2.Task.FromString,
        )

    def cpu(self) -> float:
        """CPU seconds of the server so far."""
        times = self.usage.cpu_times()
        return times.user + times.system

    async def close(self) -> None:
        await self.channel.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


async def _round(side: _Side, metadata: Sequence[tuple[str, str]]) -> tuple[float, float, float]:
    """Calls a second, CPU microseconds of the server a call, and the 99th percentile in milliseconds."""
    request = task_service_pb2.GetTaskRequest(name=TASK)
    durations: list[float] = []
    start_cpu, start = side.cpu(), time.perf_counter()
    end = start + SECONDS

    async def caller() -> None:
        while (begun := time.perf_counter()) < end:
            answer = await side.call(request, timeout=10, metadata=metadata)
            durations.append(time.perf_counter() - begun)
            assert answer.name == TASK

    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(caller())
    elapsed = time.perf_counter() - start
    cpu = (side.cpu() - start_cpu) / len(durations) * 1e6
    return len(durations) / elapsed, cpu, statistics.quantiles(durations, n=100)[98] * 1e3


async def measure() -> dict[str, Any]:
    """The whole benchmark."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mesh = Mesh(folder)
        (folder / "signing.pem").write_bytes(mesh.signing_key.to_pem())
        trace = f"00-{'1' * 32}-{'2' * 16}"
        token = (*mesh.metadata(ttl=3600.0), ("x-request-id", "bench-1"))
        bare, ours = _Side("bare", folder, mesh, cores[0]), _Side("ours", folder, mesh, cores[0])
        variants = {
            "bare": (bare, ()),
            "ours": (ours, (*token, ("traceparent", f"{trace}-01"))),
            "ours_unsampled": (ours, (*token, ("traceparent", f"{trace}-00"))),
        }
        results: dict[str, list[tuple[float, float, float]]] = {key: [] for key in variants}
        try:
            for side, metadata in variants.values():
                await _round(side, metadata)
            for number in range(ROUNDS):
                order = list(variants) if number % 2 == 0 else list(reversed(variants))
                for key in order:
                    results[key].append(await _round(*variants[key]))
                rates = ", ".join(f"{key} {results[key][-1][0]:,.0f}/s" for key in variants)
                print(f"round {number + 1} of {ROUNDS}: {rates}", flush=True)
        finally:
            await bare.close()
            await ours.close()
    return _report(results)


def _report(results: dict[str, list[tuple[float, float, float]]]) -> dict[str, Any]:
    def median(key: str, column: int) -> float:
        return statistics.median(row[column] for row in results[key])

    figures: dict[str, float] = {}
    for key in results:
        figures[f"{key}_server_cpu_us_per_call"] = round(median(key, 1), 1)
        figures[f"{key}_p99_ms"] = round(median(key, 2), 2)
    figures["ours_unsampled_calls_per_second"] = round(median("ours_unsampled", 0), 1)
    figures["ours_unsampled_ratio"] = round(median("ours_unsampled", 0) / median("bare", 0), 3)
    figures["cpu_ratio"] = round(median("bare", 1) / median("ours", 1), 3)
    each = [ours[0] / bare[0] for ours, bare in zip(results["ours"], results["bare"], strict=True)]
    figures["lowest_round_ratio"] = round(min(each), 3)
    figures["load_average"] = round(os.getloadavg()[0], 2)
    packages = ("grpcio", "protobuf", "protovalidate", "opentelemetry-sdk")
    return {
        "name": "rpc",
        "unit": "calls/s",
        "ours": round(median("ours", 0), 1),
        "peer": round(median("bare", 0), 1),
        "ratio": round(median("ours", 0) / median("bare", 0), 3),
        "peer_name": "bare grpc.aio",
        "rounds": [{key: round(results[key][number][0], 1) for key in results} for number in range(ROUNDS)],
        "figures": figures,
        "switched_on": {
            "ours": "mutual TLS that rotates and the whole chain: every call traced (spans batched, not sent), metrics,"
            " admission, deadline, token (verified once, then remembered), protovalidate, role and organization, audit",
            "bare": "mutual TLS; no interceptors, no metadata",
            "both": f"{CALLERS} callers in a closed loop, one connection; server and load on a core each",
        },
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main(arguments: Sequence[str]) -> None:
    """Runs the benchmark, or, as its child, one of the servers."""
    if arguments:
        serve = {"ours": _serve_ours, "bare": _serve_bare}[arguments[0]]
        asyncio.run(serve(Path(arguments[1])))
        return
    report = asyncio.run(measure())
    path = save(report)
    print(f"{report['ours']:,.0f} of {report['peer']:,.0f} calls/s: {report['ratio']} -> {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
