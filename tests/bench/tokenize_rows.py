"""Rows of a dataset version to token arrays, beside `datasets.map` with the same tokenizer.

    python -m tests.bench.tokenize_rows            # writes build/bench/tokenize.json

The rows are the docstrings of this environment, 100,000 of them, again and again where there are more; each row has a
number of its own. Ours is what a run of pre-training does
before its first step, all of it: it reads the version (compressed with zstd) from the blob store, measures and encodes
its rows in shards that another attempt could go on from, packs them in a random order, and stores the arrays with
their SHA-256. The peer maps the tokenizer over a memory-mapped table in batches, with a process for each core, keeps
the ids alone, and writes them unpacked. Rounds are interleaved. The memory is what is resident and not shared, of the
process and those that it started, beside the file cache that both map; that of ours with nothing but this work in its
process.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars
import psutil

from deploy.demo import corpus
from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.dataset.engines.access import StoreBlobs
from services.dataset.engines.index import save as save_version
from services.dataset.engines.writing import VersionWriter
from services.training.domain.spec import Architecture, Method, Phase, TrainingSpec
from services.training.engines.prepare import partly_prepared, prepare
from services.training.engines.tokenizer import train_tokenizer
from tests.bench.peers import install
from tests.bench.report import FOLDER, ROOT, save

PEER = ("datasets==5.2.0", "transformers==5.19.0")
ROWS, MORE, ROUNDS = 100_000, 1_000_000, 3
ARCHITECTURE = Architecture(vocabulary_size=8192, sequence_length=512)
CORES = os.cpu_count() or 1


def rows_of(count: int) -> Iterator[dict[str, Any]]:
    """Docstrings, again and again where there are more rows, each row with a number of its own."""
    built = corpus.build(FOLDER / "corpus", 100_000, 1)
    texts = [orjson.loads(line)["text"] for line in Path(built.path).read_bytes().splitlines()]
    for number in range(count):
        yield {"text": texts[number % len(texts)], "number": number}


def write(folder: Path, count: int) -> str:
    """The version in a store, its rows as Parquet, and their tokenizer as a file; the digest of the version."""
    blobs = StoreBlobs(BlobStore(f"file://{folder}/blobs"))
    writer = VersionWriter(blobs)
    for position, row in enumerate(rows_of(count)):
        writer.add(row, "docs.jsonl", position, "")
    polars.DataFrame(rows_of(count)).write_parquet(folder / f"{count}.parquet", row_group_size=10_000)
    return save_version(writer.finish(), blobs).manifest_digest


class Peak(threading.Thread):
    """The most memory (resident and not shared, MiB) that a process and its children had together."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._ended = threading.Event()
        self.mebibytes = 0.0

    def run(self) -> None:
        while not self._ended.wait(0.1):
            total = 0
            try:
                for each in [self._process, *self._process.children(recursive=True)]:
                    memory = each.memory_info()
                    total += memory.rss - memory.shared
            except psutil.Error:
                continue
            self.mebibytes = max(self.mebibytes, total / 2**20)

    def stop(self) -> float:
        """The peak."""
        self._ended.set()
        self.join()
        return self.mebibytes


def ours(given: dict[str, Any]) -> dict[str, float]:
    """The whole preparation of a run, in this process.

    Args:
        given: `folder`, `digest` of the version, `rows`, `tokenizer` (a file).
    """
    store = BlobStore(f"file://{given['folder']}/blobs")
    # Every sequence that the rows give; the tokenizer is there already, as a base's would be.
    phase = Phase(Method.PRETRAIN, 1 << 26, 1, learning_rate=1e-3)
    spec = TrainingSpec((phase,), ARCHITECTURE)
    context = LocalContext(
        {"spec": spec.to_json(), "train": {"grant": "", "manifest_digest": given["digest"]}},
        blobs_write=store,
        blobs_read=store,
    )
    context.spec["encodings"] = {given["key"]: {"grant": "", "manifest_digest": given["tokenizer"]}}
    began, used = time.perf_counter(), time.process_time()
    plan = prepare(context, spec, partly_prepared(context))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - used
    blobs = store.load_manifest_sync(plan["prepared"])["blobs"]
    size = next(entry["size"] for entry in blobs if entry["path"].endswith("sequences.npy"))
    tokens = float((size - 128) // 4)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "rows": float(given["rows"]), "tokens": tokens}


def started(command: list[str], environment: dict[str, str], answer: Path) -> dict[str, float]:
    """Figures of a process, with the most memory that it had."""
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        peak = Peak(psutil.Process(process.pid))
        peak.start()
        _, error = process.communicate()
        mebibytes = peak.stop()
    if process.returncode:
        sys.exit(f"{command[1]} failed:\n{error[-3000:]}")
    return {**json.loads(answer.read_text()), "peak_mib": round(mebibytes)}


class Start:
    """What both sides read.

    Args:
        folder: for everything.
    """

    def __init__(self, folder: Path, counts: tuple[int, ...]) -> None:
        self.folder = folder
        self.digests = {count: write(folder, count) for count in counts}
        self.store = BlobStore(f"file://{folder}/blobs")
        tokenizer = train_tokenizer((row["text"] for row in rows_of(20_000)), ARCHITECTURE.vocabulary_size)
        self.tokenizer = folder / "tokenizer.json"
        self.tokenizer.write_text(tokenizer.to_str())
        blob = self.store.put_sync(self.tokenizer)
        entry = {"path": "tokenizer.json", "sha256": blob.sha256, "size": blob.size}
        self.manifest = self.store.commit_sync({"kind": "training.encoding", "blobs": [entry]})

    def ours(self, count: int) -> dict[str, float]:
        """Figures of ours over so many rows, in a process of its own."""
        from services.training.engines.encodings import tokenizer_key

        spec = TrainingSpec((Phase(Method.PRETRAIN, 1, 1, learning_rate=1e-3),), ARCHITECTURE)
        given = {
            "folder": str(self.folder),
            "digest": self.digests[count],
            "rows": count,
            "tokenizer": self.manifest,
            "key": tokenizer_key(self.digests[count], spec),
        }
        answer = self.folder / "ours.json"
        program = [sys.executable, "-m", "tests.bench.tokenize_rows"]
        command = [*program, "--one", json.dumps(given), "--answer", str(answer)]
        return started(command, dict(os.environ), answer)

    def peer(self, python: Path, count: int) -> dict[str, float]:
        """The same of the peer."""
        with tempfile.TemporaryDirectory(dir=self.folder) as target:
            options = {
                "rows": str(self.folder / f"{count}.parquet"),
                "tokenizer": str(self.tokenizer),
                "workers": CORES,
                "target": target,
            }
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "HF_HOME": target}
            # Not the folder of the script: a module of the standard library is called as this one.
            command = [str(python), "-P", str(ROOT / "tests" / "bench" / "tokenize_peer.py"), json.dumps(options)]
            return started(command, environment, Path(target) / "figures.json")


def rate(figures: dict[str, float]) -> float:
    return round(figures["rows"] / figures["seconds"], 1)


def measure(folder: Path, rounds: int, rows: int, more: int) -> dict[str, Any]:
    """The whole benchmark."""
    python = install("datasets", PEER)
    start = Start(folder, (rows, more) if more else (rows,))
    print(f"{rows:,} rows, {CORES} cores", flush=True)
    found: list[dict[str, dict[str, float]]] = []
    for number in range(rounds):
        found.append({"ours": start.ours(rows), "datasets_map": start.peer(python, rows)})
        print(f"round {number + 1}: {found[-1]}", flush=True)
    larger: dict[str, dict[str, float]] = {}
    if more:
        larger = {"ours": start.ours(more), "datasets_map": start.peer(python, more)}
        print(f"{more:,} rows: {larger}", flush=True)
    rounds_ = [{side: rate(one[side]) for side in one} for one in found]
    medians = {side: statistics.median(one[side] for one in rounds_) for side in ("ours", "datasets_map")}
    figures: dict[str, float] = {"rows": rows, "tokens": found[0]["ours"]["tokens"]}
    for side in medians:
        figures[f"cpu_seconds_{side}"] = statistics.median(one[side]["cpu_seconds"] for one in found)
        figures[f"peak_mib_{side}"] = statistics.median(one[side]["peak_mib"] for one in found)
        if more:
            figures[f"peak_mib_{side}_{more}_rows"] = larger[side]["peak_mib"]
            figures[f"{side}_{more}_rows"] = rate(larger[side])
    if more:
        figures[f"ratio_{more}_rows"] = round(rate(larger["ours"]) / rate(larger["datasets_map"]), 3)
    return {
        "name": "tokenize",
        "unit": "rows/s",
        "ours": medians["ours"],
        "peer": medians["datasets_map"],
        "ratio": round(statistics.median(one["ours"] / one["datasets_map"] for one in rounds_), 3),
        "peer_name": f"datasets.map, batched, {CORES} processes",
        "rounds": rounds_,
        "figures": figures,
        "on": {
            "ours": "checked reading of compressed parts, shards for resuming, random order, packing, SHA-256, fsync",
            "peer": "ids alone, unpacked, in the order of the file; nothing hashed or synced",
        },
        "versions": {name: importlib.metadata.version(name) for name in ("tokenizers", "pyarrow", "numpy")}
        | {"python": platform.python_version(), "peer": list(PEER)},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--more", type=int, default=MORE, help="rows of the large version; 0: none")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        arguments.answer.write_text(json.dumps(ours(json.loads(arguments.one))))
        return
    with tempfile.TemporaryDirectory(prefix="argosy-bench-", dir=FOLDER.parent) as name:
        report = measure(Path(name), arguments.rounds, arguments.rows, arguments.more)
    print(f"{report['ours']:,} rows/s, {report['ratio']} of datasets.map: {save(report)}")


if __name__ == "__main__":
    main()
