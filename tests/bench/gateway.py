"""Our gateway beside LiteLLM's proxy: chat without streaming, one worker each, in the same run.

    python -m tests.bench.gateway            # writes build/bench/gateway.json

Both check a key, hold limits, meter usage and export every trace. The gateways run on the first core; the load
generator and what answers behind them on the second. Rounds are interleaved; the headline is requests a second, and CPU
microseconds a request is what does not depend on the generator.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.bench import gateway_peer
from tests.bench.gateway_upstream import ANSWER, KEY
from tests.bench.report import ROOT, save

GATEWAY_CORE, LOAD_CORE = 0, 1
_START_SECONDS = 120.0
# The share of its core that a gateway under full load must have had for its requests a second to mean something.
_FULL_CORE = 0.7
BODY = json.dumps(
    {
        "model": "llm",
        "messages": [
            {"role": "system", "content": "You are a harbour master. Answer in one sentence."},
            {"role": "user", "content": "What does the port do for ships that arrive after dark?"},
        ],
        "max_tokens": 64,
        "temperature": 0.2,
    }
)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Generator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pinned(core: int, *arguments: str) -> list[str]:
    return ["taskset", "-c", str(core), sys.executable, "-m", *arguments]


class Upstream:
    """The stub process."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        command = _pinned(LOAD_CORE, "tests.bench.gateway_upstream", str(folder))
        self._process = stack.enter_context(
            _ended(subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        )
        self.places: dict[str, int] = self._line()

    def _line(self) -> dict[str, int]:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def counts(self) -> dict[str, int]:
        """What has arrived there: usage entries, bytes of telemetry."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._line()


def _start_ours(folder: Path, places: dict[str, int], port: int, stack: ExitStack) -> psutil.Process:
    peers = {name: f"127.0.0.1:{places[name]}" for name in ("identity", "deploy")}
    peers |= dict.fromkeys(("app", "dataset", "training"), "127.0.0.1:1")
    environment = {
        **os.environ,
        "ARGOSY_HOME": str(folder),
        "ARGOSY_PKI_DIR": str(folder / "pki"),
        "ARGOSY_PEERS": json.dumps(peers),
        "ARGOSY_OTLP": f"127.0.0.1:{places['otlp']}",
        "ARGOSY_GATEWAY_LISTEN": "127.0.0.1:0",
        "ARGOSY_GATEWAY_HTTP_LISTEN": f"127.0.0.1:{port}",
    }
    log = (folder / "gateway.log").open("wb")
    command = _pinned(GATEWAY_CORE, "services.gateway", "--role", "rpc")
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    stack.enter_context(_ended(process))
    return psutil.Process(process.pid)


def _wait_for(port: int, key: str, process: psutil.Process, log: Path) -> None:
    """Until a chat is answered. Exits with the end of the log if that does not happen."""
    deadline = time.monotonic() + _START_SECONDS
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    while time.monotonic() < deadline and process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        try:
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            answer = httpx.post(url, content=BODY, headers=headers, timeout=10, trust_env=False)
            if answer.status_code == 200 and ANSWER in answer.text:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    sys.exit(f"nothing answers on port {port}:\n{log.read_text(errors='replace')[-3000:]}")


def _load(port: int, key: str, connections: int, seconds: float) -> dict[str, Any]:
    arguments = {
        "port": port,
        "path": "/v1/chat/completions",
        "body": BODY,
        "key": key,
        "connections": connections,
        "seconds": seconds,
        "expected": ANSWER,
    }
    command = _pinned(LOAD_CORE, "tests.bench.gateway_load", json.dumps(arguments))
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout)
    if result["errors"]:
        sys.exit(f"{result['errors']} errors under load: {result['first_error']}")
    return result


def _cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and all its children."""
    processes = [process, *process.children(recursive=True)]
    return sum(times.user + times.system for times in (one.cpu_times() for one in processes))


def _measure(process: psutil.Process, port: int, key: str, connections: int, seconds: float) -> dict[str, Any]:
    before = _cpu_seconds(process)
    result = _load(port, key, connections, seconds)
    # What is still to be written and exported belongs to these requests.
    time.sleep(1.2)
    result["cpu_us"] = (_cpu_seconds(process) - before) / result["requests"] * 1e6
    # A gateway that is the bottleneck uses all of its core; less means that others on the machine took it.
    result["core_share"] = result["cpu_us"] * result["per_second"] / 1e6
    result["rss_mib"] = process.memory_info().rss / 2**20
    return result


def _check_switched_on(counts: dict[str, int], folder: Path, ours: int, peer: int) -> None:
    """Exits unless both metered and traced: a gateway that skips that is fast for nothing."""
    if counts["ours_usage_entries"] < ours or not counts["ours_trace_bytes"] or not counts["ours_logs_bytes"]:
        sys.exit(f"our gateway did not meter or trace all of {ours} requests: {counts}")
    if peer:
        meter = folder / "usage.jsonl"
        lines = meter.read_bytes().count(b"\n") if meter.exists() else 0
        if lines < peer or not counts["peer_trace_bytes"]:
            sys.exit(f"the peer did not meter or trace all of {peer} requests: {lines} lines, {counts}")


def _figures(name: str, rounds: list[dict[str, Any]]) -> dict[str, float]:
    keys = ("per_second", "cpu_us", "core_share", "p50_ms", "p99_ms", "rss_mib", "generator_busy")
    figures = {f"{name}_{key}": round(statistics.median(one[key] for one in rounds), 3) for key in keys}
    for key in ("per_second", "cpu_us"):
        values = sorted(one[key] for one in rounds)
        figures[f"{name}_{key}_min"], figures[f"{name}_{key}_max"] = round(values[0], 3), round(values[-1], 3)
    return figures


def _peer_version() -> str:
    python = gateway_peer.FOLDER / "bin" / "python"
    code = "from importlib.metadata import version; print(version('litellm'))"
    return subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def run(rounds: int, seconds: float, connections: int, with_peer: bool) -> dict[str, Any]:
    """Measures, and gives what is written."""
    ours: list[dict[str, Any]] = []
    peer: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="argosy-bench-")))
        upstream = Upstream(folder, stack)
        our_port, peer_port = _free_port(), _free_port()
        our_process = _start_ours(folder, upstream.places, our_port, stack)
        _wait_for(our_port, KEY, our_process, folder / "gateway.log")
        contenders = [(ours, our_process, our_port, KEY)]
        if with_peer:
            places = {"upstream": upstream.places["openai"], "otlp": upstream.places["plain_otlp"]}
            log = folder / "litellm.log"
            started = gateway_peer.start(folder, port=peer_port, **places, core=GATEWAY_CORE, log=log)
            stack.enter_context(_ended(started))
            peer_process = psutil.Process(started.pid)
            _wait_for(peer_port, gateway_peer.KEY, peer_process, log)
            contenders.append((peer, peer_process, peer_port, gateway_peer.KEY))
        generator = _load(upstream.places["openai"], "none", connections, 1.0)
        for _, _, port, key in contenders:
            _load(port, key, connections, 1.0)
        for number in range(rounds):
            # ABBA: what drifts over the run falls on both alike.
            for results, process, port, key in contenders if number % 2 == 0 else contenders[::-1]:
                results.append(_measure(process, port, key, connections, seconds))
                print(
                    f"round {number + 1}: port {port}: {results[-1]['per_second']:.0f}/s, "
                    f"{results[-1]['cpu_us']:.0f} us CPU",
                    flush=True,
                )
        counts = upstream.counts()
        _check_switched_on(counts, folder, sum(one["requests"] for one in ours), sum(one["requests"] for one in peer))
    figures = {**_figures("ours", ours), "generator_alone_per_second": round(generator["per_second"], 1)}
    figures |= {f"arrived_{name}": count for name, count in counts.items()}
    figures["load_average"] = round(os.getloadavg()[0], 1)
    result: dict[str, Any] = {
        "name": "gateway",
        "unit": "chat requests a second, without streaming",
        "ours": figures["ours_per_second"],
        "peer": None,
        "ratio": None,
        "peer_name": "LiteLLM proxy",
        "rounds": rounds,
        "connections": connections,
        "figures": figures,
        "switched_on": {
            "ours": "key check, request and token limits, usage ledger with journal, span and access line of every "
            "request exported by OTLP, mutual TLS to the replica, deployment token",
            "peer": "key check (master key), rpm and tpm limits, usage written to a file, spans exported by OTLP",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("grpcio", "uvicorn", "uvloop", "httptools", "orjson")},
        },
    }
    if peer:
        # Requests a second compare only gateways that had their core; CPU a request (cpu_ratio) holds in any case.
        figures |= _figures("peer", peer)
        result["peer"] = figures["peer_per_second"]
        result["ratio"] = round(result["ours"] / result["peer"], 2)
        figures["cpu_ratio"] = round(figures["peer_cpu_us"] / figures["ours_cpu_us"], 2)
        shares = (figures["ours_core_share"], figures["peer_core_share"])
        result["undisturbed"] = min(shares) > _FULL_CORE
        result["versions"]["litellm"] = _peer_version()
    return result


def main() -> None:
    """Writes build/bench/gateway.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--without-peer", action="store_true", help="only ours, for profiling")
    options = parser.parse_args()
    result = run(options.rounds, options.seconds, options.connections, not options.without_peer)
    save(result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
