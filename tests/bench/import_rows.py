"""Import of a million rows of JSONL into a version, beside polars reading and writing the same file: the limit.

    python -m tests.bench.import_rows            # writes build/bench/import.json

Ours runs the engine of the dataset service on Ray with both cores: the upload lies in a blob store in pieces of 8 MiB,
as it does after an upload; every row is checked, gets its SHA-256 and its place, and is stored durably. Polars, on both
cores too, infers a schema from the first rows, reads and writes Arrow IPC with zstd. Rounds are interleaved.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import polars
import psutil
import ray

from deploy.demo import corpus
from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.dataset.engines import importing
from tests.bench.report import FOLDER, save

ROWS = 1_000_000
# Of the small and the large file, for how time and memory grow.
FEWER = ROWS // 10
MORE = ROWS * 3
ROUNDS = 3
PIECE = 8 * 1024 * 1024


def write_rows(path: Path, count: int) -> None:
    """Docstrings of this environment again and again, each row with a number of its own."""
    built = corpus.build(FOLDER / "corpus", 100_000, 1)
    rows = [orjson.loads(line) for line in Path(built.path).read_bytes().splitlines()]
    with path.open("wb") as file:
        for number in range(count):
            file.write(orjson.dumps({**rows[number % len(rows)], "number": number}) + b"\n")


class Peak:
    """The most memory (resident and not shared, MiB) that this process and Ray's workers of the import had together."""

    def __init__(self) -> None:
        self.mebibytes = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._stop.wait(0.1):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    if process is own or process.name().startswith("ray::"):
                        memory = process.memory_info()
                        total += memory.rss - memory.shared
                except psutil.Error:
                    continue
            self.mebibytes = max(self.mebibytes, total / 2**20)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def uploaded(path: Path, folder: Path) -> Generator[tuple[BlobStore, str]]:
    """A store with the file in it, and the manifest of its pieces."""
    root = folder / "store"
    store = BlobStore(f"file://{root}")
    with path.open("rb") as file:
        parts = iter(lambda: file.read(PIECE), b"")
        pieces = [{"sha256": store.put_sync(part).sha256, "size": len(part)} for part in parts]
    try:
        yield store, store.commit_sync({"blobs": pieces})
    finally:
        shutil.rmtree(root)


def ours(path: Path, folder: Path, rows: int) -> tuple[float, float]:
    """Seconds, and peak memory in MiB."""
    with uploaded(path, folder) as (store, upload):
        grant = store.grant_sync(upload, "bench", 3600)
        spec = {"upload": upload, "upload_grant": grant, "file_name": path.name, "format": "jsonl"}
        context = LocalContext(spec, blobs_write=store, blobs_read=store)
        with Peak() as peak:
            start = time.perf_counter()
            result = importing.run(context)
            seconds = time.perf_counter() - start
        assert result["row_count"] == rows
        return seconds, peak.mebibytes


def peer(path: Path, folder: Path, rows: int) -> float:
    """Seconds of polars."""
    target = folder / "rows.arrow"
    start = time.perf_counter()
    polars.scan_ndjson(path).sink_ipc(target, compression="zstd")
    seconds = time.perf_counter() - start
    assert polars.scan_ipc(target).select(polars.len()).collect().item() == rows
    target.unlink()
    return seconds


def measure(folder: Path) -> dict[str, Any]:
    """The whole benchmark."""
    large, small = folder / "rows.jsonl", folder / "fewer.jsonl"
    write_rows(large, ROWS)
    write_rows(small, FEWER)
    size, small_size = (path.stat().st_size / 1e6 for path in (large, small))
    print(f"{ROWS:,} rows, {size:,.0f} MB", flush=True)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        # Workers are started and have imported what they need.
        ours(small, folder, FEWER)
        rounds: list[dict[str, float]] = []
        for number in range(ROUNDS):
            seconds, memory = ours(large, folder, ROWS)
            few_seconds, few_memory = ours(small, folder, FEWER)
            rounds.append(
                {
                    "ours": round(size / seconds, 1),
                    "polars": round(size / peer(large, folder, ROWS), 1),
                    "peak_mib": round(memory, 1),
                    "peak_mib_of_a_tenth": round(few_memory, 1),
                    "times_a_tenth": round(seconds / few_seconds, 2),
                }
            )
            print(f"round {number + 1} of {ROUNDS}: {rounds[-1]}", flush=True)
        write_rows(large, MORE)
        more_seconds, more_memory = ours(large, folder, MORE)
        more = {"peak_mib_of_thrice": round(more_memory, 1), "seconds_of_thrice": round(more_seconds, 1)}
        print(f"{MORE:,} rows: {more}", flush=True)
    finally:
        ray.shutdown()

    def median(name: str) -> float:
        return statistics.median(row[name] for row in rounds)

    return {
        "name": "import",
        "unit": "MB/s",
        "ours": median("ours"),
        "peer": median("polars"),
        "ratio": round(median("ours") / median("polars"), 3),
        "peer_name": "polars scan_ndjson, sink_ipc",
        "rounds": rounds,
        "figures": {name: median(name) for name in ("peak_mib", "peak_mib_of_a_tenth", "times_a_tenth")}
        | more
        | {
            "rows": ROWS,
            "megabytes": round(size, 1),
            "megabytes_of_a_tenth": round(small_size, 1),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "switched_on": {
            "ours": "every row parsed, checked, hashed (SHA-256), typed; parts zstd 1, synced to disk; two Ray workers",
            "polars": "schema from the first rows, Arrow IPC with zstd, two threads, not synced",
        },
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in ("ray", "pyarrow", "orjson", "polars")},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """Runs the benchmark."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        report = measure(Path(folder))
    path = save(report)
    print(f"{report['ours']} of {report['peer']} MB/s: {report['ratio']} -> {path}")


if __name__ == "__main__":
    main()
