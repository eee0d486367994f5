"""A run of own code: its files and data in a folder, its script in a sandbox, what it leaves as a model."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from libs.compute.context import EngineContext, EngineError
from libs.compute.process_usage import Usage
from libs.compute.scratch import scratch_folder
from libs.compute.script_sandbox import (
    CODE,
    WRITABLE,
    ScriptFailed,
    ScriptLimits,
    ScriptSandboxUnavailable,
    printable,
    run_script,
)
from services.training.engines.algorithms.interface import Table
from services.training.engines.algorithms.versions import Rows, heldout_share, split
from services.training.engines.script_output import bring_folder, keep_folder, model_entries

Json = dict[str, Any]

# What it can import of the platform's environment, with the versions that its model was made with.
_FRAMEWORK = ("torch", "numpy", "scikit-learn", "safetensors", "onnx")
_PHASE = "script"
_METRIC = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
_MOST_METRICS = 64
_MOST_STEP = 2**53
# Lines and characters of what it prints that are kept; a script that prints in each step of a long run has more.
_MOST_LINES, _MOST_CHARACTERS = 10_000, 1_000_000
# Values of curves that are kept: a hundred curves of a hundred thousand steps.
_MOST_VALUES = 10_000_000
# All checkpoints of an attempt together, in times of its disk: the store has old ones for two days. A file takes a
# block at least.
_MOST_DISKS, _BLOCK = 100, 4096


def run(ctx: EngineContext) -> Json:
    """Trains by a script.

    Args:
        ctx: as `algorithms.run` takes it; `algorithm` has `script` too: `name`, `grant` and `manifest_digest` of its
            files, and `limits` (`max_seconds`, `max_memory_bytes`, `max_disk_bytes`).

    Returns:
        As `algorithms.run`.

    Raises:
        EngineError: CONTENT_INVALID, the script failed or its model is not in order; PREFLIGHT_FAILED, this machine has
            no sandbox; STORAGE_FULL, its disk is nearly full; TRAINING_DIVERGED.
        EngineCancelled: The task was cancelled.
        EnginePaused: It stopped at a checkpoint, as it was asked to.
    """
    given: Json = ctx.spec["algorithm"]
    script, limits = given["script"], given["script"]["limits"]
    with scratch_folder("argosy-code-") as folder:
        for name in (CODE, "data", *WRITABLE):
            (folder / name).mkdir()
        share = _lay_out(ctx, given, folder)
        step = _bring_checkpoint(ctx, folder)
        ctx.stop_if_cancelled()
        ctx.progress(0.0, f"running {given['code']}")
        report = _Report(ctx, folder, limits["max_disk_bytes"])
        allowed = ScriptLimits(
            limits["max_seconds"], limits["max_memory_bytes"], limits["max_disk_bytes"], ctx.spec["threads"]
        )
        try:
            run_script(folder, given["code"], allowed, ctx.spec["seed"], step, report)
        except ScriptSandboxUnavailable as error:
            raise EngineError("PREFLIGHT_FAILED", f"Own code is not run here: {error}.", check="sandbox") from None
        except ScriptFailed as error:
            raise _failed(given["code"], str(error)) from None
        ctx.stop_if_cancelled()
        ctx.progress(1.0, "writing the model", cpu_seconds=report.cpu_seconds)
        entries, parameters = model_entries(ctx, folder / "output", limits["max_memory_bytes"])
    return {
        "manifest_digest": ctx.blobs_write.commit_sync({"kind": "training.model", "blobs": entries}),
        "files": entries,
        "parameter_count": parameters,
        "context_length": 0,
        "architecture": script["name"],
        "results": report.results | share,
        "framework": {name: importlib.metadata.version(name) for name in _FRAMEWORK},
        "train_framework": f"python {platform.python_version()}",
    }


def _lay_out(ctx: EngineContext, given: Json, folder: Path) -> dict[str, float]:
    """Writes what the script may read; the share of held-out rows that it learns from, where both were given."""
    script = given["script"]
    bring_folder(ctx.blobs_read(script["grant"]), script["manifest_digest"], folder / CODE)
    (folder / "parameters.json").write_text(json.dumps(given["parameters"], ensure_ascii=False), encoding="utf-8")
    if "train" not in ctx.spec:
        return {}
    ctx.progress(0.0, "reading rows")
    train, share = Rows.open(ctx, "train", None), {}
    if "validation" in ctx.spec:
        heldout = Rows.open(ctx, "validation", None)
        share = {"leaked_share": heldout_share(heldout, train)}
    else:
        train, heldout = split(train, ctx.spec["seed"])
    files: dict[str, dict[str, str]] = {}
    for name, rows in (("train", train), ("heldout", heldout)):
        _write_parquet(rows.table(), folder / "data" / f"{name}.parquet", ctx)
        # Both parts may have other files under the same names.
        files[name] = _write_files(rows, folder / "data" / "files", ctx)
    (folder / "data" / "files.json").write_text(json.dumps(files, ensure_ascii=False), encoding="utf-8")
    return share


def _write_files(rows: Rows, folder: Path, ctx: EngineContext) -> dict[str, str]:
    """The files of rows, such as pictures, under their digests; file name to digest."""
    if rows.files is None:
        return {}
    folder.mkdir(exist_ok=True)
    for digest in rows.digests.values():
        ctx.stop_if_cancelled()
        rows.files.export_sync(digest, folder / digest)
    return rows.digests


def _write_parquet(table: Table, path: Path, ctx: EngineContext) -> None:
    writer = None
    try:
        for batch in table.batches():
            ctx.stop_if_cancelled()
            writer = writer or pq.ParquetWriter(path, batch.schema)
            writer.write_batch(batch)
    finally:
        if writer is not None:
            writer.close()


def _bring_checkpoint(ctx: EngineContext, folder: Path) -> int:
    """The files that an earlier attempt kept; the step that it had reached, 0 for none."""
    if ctx.resume is None:
        return 0
    step: int = ctx.resume["step"]
    ctx.log(f"resuming from step {step}")
    bring_folder(ctx.blobs_write, ctx.resume["manifest_digest"], folder / "checkpoint")
    return step


def _failed(entry: str, told: str) -> EngineError:
    told = printable(told)
    return EngineError("CONTENT_INVALID", f"The script {entry} failed: {told}", detail=told.splitlines()[-1][:300])


class _Report:
    """What a script prints and says, for the task.

    Args:
        folder: of the run.
        disk: bytes that its files may take.

    Attributes:
        results: last value of each metric.
        cpu_seconds: that it has used.
    """

    def __init__(self, ctx: EngineContext, folder: Path, disk: int) -> None:
        self._ctx = ctx
        self._folder = folder
        self._most_kept = _MOST_DISKS * disk
        self._lines = self._characters = self._values = self._kept = 0
        self._silent = False
        self.results: dict[str, float] = {}
        self.cpu_seconds = 0.0

    def line(self, text: str) -> None:
        self._ctx.stop_if_cancelled()
        self._lines, self._characters = self._lines + 1, self._characters + len(text)
        if self._lines <= _MOST_LINES and self._characters <= _MOST_CHARACTERS:
            self._ctx.log(text)
        elif not self._silent:
            self._silent = True
            limit = f"{_MOST_LINES:,} lines or {_MOST_CHARACTERS:,} characters"
            self._ctx.log(f"it prints more than {limit}; the rest is left out", "WARNING")

    def message(self, message: Json) -> None:
        self._ctx.stop_if_cancelled()
        if "metrics" in message:
            self._metrics(_step(message), message["metrics"])
        elif "progress" in message:
            fraction = message["progress"]
            if type(fraction) not in (int, float) or not 0 <= fraction <= 1:
                raise ScriptFailed(f"argosy_run.progress: {str(fraction)[:50]} is not between 0 and 1")
            shown = printable(str(message.get("message", "")))[:200]
            self._ctx.progress(fraction, shown, cpu_seconds=self.cpu_seconds)
        elif "checkpoint" in message:
            self._checkpoint(_step({"step": message["checkpoint"]}))
        else:
            raise ScriptFailed("it sent a message that argosy_run does not send")

    def used(self, usage: Usage) -> None:
        self._ctx.stop_if_cancelled()
        self.cpu_seconds = usage.cpu_seconds

    def _checkpoint(self, step: int) -> None:
        digest, entries = keep_folder(self._ctx, self._folder / "checkpoint", step=step)
        self._kept += sum(max(_BLOCK, entry["size"]) for entry in entries)
        if self._kept > self._most_kept:
            limit = f"{self._most_kept >> 20:,} MiB, {_MOST_DISKS} times max_disk_bytes"
            raise ScriptFailed(f"its checkpoints have more bytes together than they may: {limit}")
        size = sum(entry["size"] for entry in entries)
        self._ctx.checkpoint({"phase": _PHASE, "step": step, "manifest_digest": digest, "bytes": size})
        self._ctx.pause_if_asked()

    def _metrics(self, step: int, values: Any) -> None:
        if not isinstance(values, dict) or not 0 < len(values) <= _MOST_METRICS:
            raise ScriptFailed(f"argosy_run.log_metric takes 1 to {_MOST_METRICS} values")
        for name, value in values.items():
            if not _METRIC.fullmatch(name):
                raise ScriptFailed(f"argosy_run.log_metric: {printable(name)[:100]!r} is no name of a metric")
            if type(value) not in (int, float):
                raise ScriptFailed(f"argosy_run.log_metric: {name} is no number")
            # A whole number may be too large for a float.
            if not -sys.float_info.max <= value <= sys.float_info.max:
                message = f"{name} is {str(value)[:50]} at step {step}."
                raise EngineError("TRAINING_DIVERGED", message, phase=_PHASE, step=str(step))
            self.results[name] = float(value)
        if len(self.results) > 10 * _MOST_METRICS:
            raise ScriptFailed(f"it has more than {10 * _MOST_METRICS} metrics")
        before, self._values = self._values, self._values + len(values)
        if self._values <= _MOST_VALUES:
            self._ctx.metrics(_PHASE, step, **values)
        elif before <= _MOST_VALUES:
            self._ctx.log(f"it logs more than {_MOST_VALUES:,} values; curves end here, results do not", "WARNING")


def _step(message: Json) -> int:
    step = message.get("step")
    if type(step) is not int or not 0 <= step < _MOST_STEP:
        raise ScriptFailed(f"argosy_run: {str(step)[:50]} is no step")
    return step
