"""Tables in memory, a watch that remembers, and what holds for every algorithm."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from libs.compute.context import EngineCancelled, EngineError
from services.training.engines.algorithms.interface import Algorithm, Table, Trained

Row = dict[str, Any]


class Recorder:
    """A watch that keeps what it is told.

    Args:
        cancel_after: points of a curve until somebody cancels.
    """

    def __init__(self, cancel_after: int | None = None) -> None:
        self.fractions: list[float] = []
        self.points: list[tuple[int, dict[str, float]]] = []
        self.logs: list[str] = []
        self._cancel_after = cancel_after
        self._blobs: dict[str, bytes] = {}

    def progress(self, fraction: float, message: str) -> None:
        self.fractions.append(fraction)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.points.append((step, values))

    def log(self, message: str) -> None:
        self.logs.append(message)

    def stop_if_cancelled(self) -> None:
        if self._cancel_after is not None and len(self.points) >= self._cancel_after:
            raise EngineCancelled()

    def put(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self._blobs[digest] = content
        return digest

    def get(self, digest: str) -> bytes:
        return self._blobs[digest]

    def keep(self, state: Row, digests: Sequence[str]) -> None:
        assert set(digests) <= self._blobs.keys()

    def kept(self) -> Row | None:
        return None


def table(rows: list[Row], media: Mapping[str, bytes] | None = None, columns: tuple[str, ...] = ()) -> Table:
    """Rows in batches of 50, with files by name."""
    names = columns or tuple(rows[0])

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), 50):
            yield pa.RecordBatch.from_pylist(rows[start : start + 50])

    return Table(names, batches, lambda name: dict(media or {})[name])


def parameters(algorithm: Algorithm, **others: Any) -> Row:
    """The defaults of an algorithm, and others in their place."""
    properties = algorithm.parameters["properties"]
    assert others.keys() <= properties.keys()
    return {name: one["default"] for name, one in properties.items()} | others


def require_reports(watch: Recorder) -> None:
    """The curve falls, and the progress rises to its end."""
    assert watch.fractions == sorted(watch.fractions)
    assert watch.fractions[-1] > 0.9
    assert all({"loss", "learning_rate"} <= values.keys() for _, values in watch.points)
    assert [step for step, _ in watch.points] == sorted({step for step, _ in watch.points})


def require_reproducible(algorithm: Algorithm, rows: Table, given: Row) -> None:
    """One seed gives one model; another one gives another."""

    def trained(seed: int) -> Trained:
        return algorithm.train(rows, None, given, seed, Recorder())

    first = trained(3)
    assert first == trained(3)
    assert first.files["model.safetensors"] != trained(4).files["model.safetensors"]


def require_cancel(algorithm: Algorithm, rows: Table, given: Row) -> None:
    """It stops between two steps."""
    watch = Recorder(cancel_after=2)
    with pytest.raises(EngineCancelled):
        algorithm.train(rows, None, given, 1, watch)
    assert len(watch.points) == 2


def refusal(algorithm: Algorithm, rows: Table, given: Row, heldout: Table | None = None) -> str:
    """What it says about rows that it does not take."""
    with pytest.raises(EngineError) as refused:
        algorithm.train(rows, heldout, given, 1, Recorder())
    assert refused.value.reason == "CONTENT_INVALID"
    assert refused.value.metadata["detail"]
    return refused.value.message


def require_damage_is_seen(algorithm: Algorithm, files: dict[str, bytes]) -> None:
    """A file that is missing, cut off, or that of another algorithm is named."""
    for path in files:
        with pytest.raises(EngineError, match=path):
            algorithm.load({name: content for name, content in files.items() if name != path})
        with pytest.raises(EngineError, match=path):
            algorithm.load({**files, path: files[path][:-1]})
    with pytest.raises(EngineError, match="config"):
        algorithm.load({**files, "config.json": b'{"algorithm": "another"}'})
