"""AutoML beside FLAML: the same rows to learn from, the same seconds, the same held-out rows.

    python -m tests.bench.automl            # writes build/bench/automl.json

Four tables that ship inside scikit-learn, each split at random, a fifth held out, by the number of the round. Each side
has a process of its own with one thread, and both are given the same seconds; rounds are interleaved. Ours is a whole
run: it reads a version, tries models, mixes them, writes and checks the ONNX file, and is asked from that file. Quality
is the log loss, or the root of the mean squared error, on the held-out rows: the ratio of a table is FLAML's over ours,
so that above 1 ours is better; `ratio` is the geometric mean over tables and rounds. Docstrings by package are ours
alone: FLAML's texts need a language model from a hub.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

from libs.common.blobs import BlobStore
from services.training.engines.algorithms import automl
from services.training.engines.train import run
from tests.bench.peers import install
from tests.bench.report import ROOT, save
from tests.unit.training.tables import algorithm_context, docstrings

PEER = ("flaml[automl]==2.7.0",)
TABLES = ("wine", "breast_cancer", "diabetes", "digits")
SECONDS, ROUNDS = 10, 2
# Both sides: one thread each, also where a library counts cores by itself.
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_LEAST_PROBABILITY = 1e-7


def split(table: str, number: int) -> dict[str, Any]:
    """Rows and answers to learn from, and held-out ones."""
    found: Any = getattr(datasets, f"load_{table}")()
    answers = found.target.astype(np.float64 if table == "diabetes" else np.int64)
    strata = None if table == "diabetes" else answers
    parts = train_test_split(found.data, answers, test_size=0.2, random_state=number, stratify=strata)
    return dict(zip(("rows", "held_rows", "answers", "held_answers"), parts, strict=True))


def quality(told: Any, right: Any) -> dict[str, float]:
    """Figures of probabilities (n, classes) or numbers (n,)."""
    given = np.asarray(told)
    if given.ndim == 1:
        error = float(np.sqrt(np.square(given - right).mean()))
        return {"loss": error, "r2": 1 - error**2 / float(right.var())}
    of_right = given[np.arange(len(right)), right].clip(_LEAST_PROBABILITY)
    return {"loss": float(-np.log(of_right).mean()), "accuracy": float((given.argmax(axis=1) == right).mean())}


def ours(path: str, seconds: int, seed: int) -> dict[str, Any]:
    """A run of AutoML in this process; the held-out rows are asked from its files."""
    table: Any = np.load(path)

    def rows_of(rows: Any, answers: Any) -> list[dict[str, Any]]:
        names = [f"c{number}" for number in range(rows.shape[1])]
        return [
            dict(zip(names, row, strict=True)) | {"answer": answer}
            for row, answer in zip(rows.tolist(), answers.tolist(), strict=True)
        ]

    held = rows_of(table["held_rows"], table["held_answers"])
    with tempfile.TemporaryDirectory() as folder:
        store = BlobStore(f"file://{folder}")
        options: dict[str, Any] = {"target_column": "answer", "trials": 500, "seconds": seconds, "seed": seed}
        rows = rows_of(table["rows"], table["answers"])
        context = algorithm_context(store, "automl", rows, validation=held, **options)
        began = time.perf_counter()
        result = run(context)
        taken = time.perf_counter() - began
        files = {file["path"]: store.read_sync(file["sha256"]) for file in result["files"]}
    answers = automl.load(files).predict(held)
    told = answers if isinstance(answers[0], float) else [answer["scores"] for answer in answers]
    report = json.loads(files["report.json"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = ", ".join(f"{one['family']} {one['weight']:.2f}" for one in report["entries"] if one["weight"])
    return {"told": told, "seconds": taken, "peak_mb": peak, "found": found, "models": len(report["entries"])}


def child(command: list[str], path: str) -> dict[str, Any]:
    """What a process says on its last line."""
    environment = {**os.environ, **THREADS, "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[1]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def compared(python: Path, folder: Path, table: str, number: int, seconds: int) -> dict[str, Any]:
    """Both sides on one split."""
    content = split(table, number)
    path = folder / f"{table}-{number}.npz"
    np.savez(path, **content)
    given = [str(path), str(seconds), str(number)]
    sides = {
        "ours": [sys.executable, "-m", "tests.bench.automl", "--one", *given],
        "flaml": [str(python), "-P", str(ROOT / "tests" / "bench" / "automl_peer.py"), *given],
    }
    row: dict[str, Any] = {"table": table, "round": number}
    for side in ("ours", "flaml") if number % 2 == 0 else ("flaml", "ours"):
        answer = child(sides[side], f"{ROOT}:{ROOT / 'libs'}" if side == "ours" else "")
        row[side] = quality(answer.pop("told"), content["held_answers"]) | answer
    row["ratio"] = row["flaml"]["loss"] / row["ours"]["loss"]
    told = {side: {name: row[side][name] for name in ("loss", "seconds", "peak_mb", "found")} for side in sides}
    print(f"{table} {number}: ratio {row['ratio']:.3f}; {told}", flush=True)
    return row


def of_texts(seconds: int) -> dict[str, float]:
    """Docstrings by package, ours alone."""
    with tempfile.TemporaryDirectory() as folder:
        store = BlobStore(f"file://{folder}")
        context = algorithm_context(store, "automl", docstrings(), target_column="package", trials=500, seconds=seconds)
        began = time.perf_counter()
        figures = run(context)["results"]
    names = ("accuracy", "baseline.accuracy", "log_loss", "best_single.log_loss")
    return {f"docstrings {name}": figures[name] for name in names} | {"docstrings seconds": time.perf_counter() - began}


def measure(seconds: int, rounds: int) -> dict[str, Any]:
    """The whole benchmark."""
    python = install("flaml", PEER)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = [compared(python, Path(folder), table, number, seconds) for number in range(rounds) for table in TABLES]
    figures: dict[str, float] = {}
    for table in TABLES:
        own = [row for row in rows if row["table"] == table]
        figures[f"{table} ratio"] = math.exp(statistics.fmean(math.log(row["ratio"]) for row in own))
        for side in ("ours", "flaml"):
            figures[f"{table} loss {side}"] = statistics.fmean(row[side]["loss"] for row in own)
    for side in ("ours", "flaml"):
        figures[f"longest seconds {side}"] = max(row[side]["seconds"] for row in rows)
        figures[f"peak MB {side}"] = max(row[side]["peak_mb"] for row in rows)
    ratio = math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows))
    figures |= of_texts(seconds)
    figures |= {"seconds given": seconds, "seconds": time.perf_counter() - began, "load_average": os.getloadavg()[0]}
    return {
        "name": "automl",
        "unit": "loss of FLAML over ours",
        "ours": round(ratio, 4),
        "peer": 1.0,
        "ratio": round(ratio, 4),
        "peer_name": "FLAML",
        "rounds": rows,
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "switched_on": {
            "ours": "a whole run: reading, search, mean of models, ONNX file compared with the models, importances",
            "FLAML": "AutoML.fit with its own estimators and settings; no file is written",
        },
        "versions": {"python": platform.python_version(), "flaml": rows[0]["flaml"]["version"]}
        | {package: importlib.metadata.version(package) for package in ("optuna", "scikit-learn", "numpy")},
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        path, seconds, seed = arguments.one
        print(json.dumps(ours(path, int(seconds), int(seed))))
        return
    report = measure(arguments.seconds, arguments.rounds)
    figures = report["figures"]
    print(
        f"FLAML's loss over ours {report['ratio']:.3f}; longest {figures['longest seconds ours']:.1f} and"
        f" {figures['longest seconds flaml']:.1f} s of {figures['seconds given']} -> {save(report)}"
    )


if __name__ == "__main__":
    main()
