"""A run of an algorithm of the catalogue: dataset versions in, the files of a model out."""

from __future__ import annotations

import importlib.metadata
import math
import time
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from libs.common.blobs import BlobStore
from libs.compute.context import EngineContext, EngineError, load_entrypoint
from services.training.domain.algorithms import Role
from services.training.engines.algorithms.interface import Algorithm, Json, Table, Trained
from services.training.engines.algorithms.versions import NO_ROWS, Rows, answered, heldout_share, split

_PACKAGES = {
    "pytorch": ("torch", "safetensors"),
    "scikit-learn": ("scikit-learn", "onnx", "onnxruntime"),
}
# Nothing that runs code when it is read.
_SUFFIXES = frozenset({".json", ".safetensors", ".onnx", ".txt"})


def run(ctx: EngineContext) -> Json:
    """Trains an algorithm. These runs are short: one that was killed begins again, and the seed gives the same model.

    Args:
        ctx: its `spec` has `algorithm` (`code`, `parameters`, `columns`: parameter to role), `seed`, `threads`, and
            optionally `train` and `validation`, each `{"grant": ..., "manifest_digest": ..., "media_grant": ...}`.

    Returns:
        As `services.training.engines.train.run`, and `train_framework` with its version.

    Raises:
        EngineError: CONTENT_INVALID, PREFLIGHT_FAILED, TRAINING_DIVERGED.
        EngineCancelled: The task was cancelled.
    """
    given: Json = ctx.spec["algorithm"]
    algorithm: Any = load_entrypoint(given["code"])
    ctx.progress(0.0, "reading rows")
    train, heldout, share = _tables(ctx, given)
    ctx.stop_if_cancelled()
    watch, seed, threads = _Watch(ctx, algorithm), ctx.spec["seed"], ctx.spec["threads"]
    started, before = time.process_time(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            trained: Trained = algorithm.train(train, heldout, given["parameters"], seed, watch)
    finally:
        torch.set_num_threads(before)
    watch.require_finite(trained.results)
    ctx.progress(1.0, "writing the model", cpu_seconds=time.process_time() - started)
    digest, entries = _commit(ctx.blobs_write, trained.files)
    packages = _PACKAGES[algorithm.framework]
    framework = {name: importlib.metadata.version(name) for name in packages}
    return {
        "manifest_digest": digest,
        "files": entries,
        "parameter_count": trained.parameter_count,
        "context_length": 0,
        "architecture": algorithm.name,
        "results": trained.results | share,
        "framework": framework,
        "train_framework": f"{packages[0]} {framework[packages[0]]}",
    }


class _Watch:
    """The task as an engine sees it."""

    def __init__(self, ctx: EngineContext, algorithm: Algorithm) -> None:
        self._ctx = ctx
        self._phase = algorithm.name
        self._step = 0

    def progress(self, fraction: float, message: str) -> None:
        self._ctx.progress(fraction, message)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._step = step
        self.require_finite(values)
        self._ctx.metrics(self._phase, step, **values)

    def log(self, message: str) -> None:
        self._ctx.log(message)

    def stop_if_cancelled(self) -> None:
        self._ctx.stop_if_cancelled()

    def put(self, content: bytes) -> str:
        return self._ctx.blobs_write.put_sync(content).sha256

    def get(self, digest: str) -> bytes:
        return self._ctx.blobs_write.read_sync(digest)

    def keep(self, state: Json, digests: Sequence[str]) -> None:
        store, blobs = self._ctx.blobs_write, [{"sha256": digest} for digest in digests]
        manifest = store.commit_sync({"kind": "training.checkpoint", "blobs": blobs})
        size = sum(store.stat_sync(digest).size for digest in digests)
        self._ctx.checkpoint({**state, "manifests": [manifest], "bytes": size})
        self._ctx.pause_if_asked()

    def kept(self) -> Json | None:
        return self._ctx.resume

    def require_finite(self, values: dict[str, float]) -> None:
        """Ends a run whose numbers ran away."""
        for name, value in values.items():
            if not math.isfinite(value):
                message = f"{name} is {value} at step {self._step}: lower the learning rate."
                raise EngineError("TRAINING_DIVERGED", message, phase=self._phase, step=str(self._step))


def _tables(ctx: EngineContext, given: Json) -> tuple[Table, Table | None, dict[str, float]]:
    """Rows to learn from, held-out rows, and the share of these that are among those where both were given."""
    if "train" not in ctx.spec:
        return NO_ROWS, None, {}
    parameters: Json = given["parameters"]
    roles = {parameter: Role(role) for parameter, role in given["columns"].items()}
    named = _named(parameters, roles)
    train = answered(Rows.open(ctx, "train", named), parameters, roles, ctx.log)
    if "validation" not in ctx.spec:
        train, heldout = split(train, ctx.spec["seed"])
        return train.table(), heldout.table(), {}
    heldout = answered(Rows.open(ctx, "validation", named), parameters, roles, ctx.log)
    share = heldout_share(heldout, train)
    return train.table(), heldout.table(), {"leaked_share": share}


def _named(parameters: Json, roles: dict[str, Role]) -> list[str] | None:
    """The columns that parameters name; None: all, because the features are whatever is left."""
    named: list[str] = []
    for parameter, role in roles.items():
        if role is not Role.FEATURES:
            named.append(parameters[parameter])
        elif parameters[parameter]:
            named += parameters[parameter]
        else:
            return None
    # An empty name is a column that the algorithm can do without.
    return list(dict.fromkeys(filter(None, named)))


def _commit(store: BlobStore, files: dict[str, bytes]) -> tuple[str, list[Json]]:
    """Stores the files; the digest of their manifest and its entries. Equal content gives an equal digest."""
    for path in files:
        if PurePosixPath(path).suffix not in _SUFFIXES:
            raise EngineError("INTERNAL", f"A model has no file of the kind of {path}.")
    blobs = {path: store.put_sync(content) for path, content in sorted(files.items())}
    entries = [blob.entry(path) for path, blob in blobs.items()]
    return store.commit_sync({"kind": "training.model", "blobs": entries}), entries
