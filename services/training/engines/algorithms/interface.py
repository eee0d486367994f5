"""What an algorithm's engine is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

Json = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of a dataset version.

    Attributes:
        columns: names in order.
        batches: starts a new pass over all rows, as Arrow batches.
        media: bytes of a file that a row names (image, audio), by the row's value in its media column.
    """

    columns: tuple[str, ...]
    batches: Callable[[], Iterator[pa.RecordBatch]]
    media: Callable[[str], bytes]


class Watch(Protocol):
    """The run, as an engine sees it."""

    def progress(self, fraction: float, message: str) -> None: ...

    def metrics(self, step: int, values: dict[str, float]) -> None: ...

    def log(self, message: str) -> None: ...

    def stop_if_cancelled(self) -> None: ...

    def put(self, content: bytes) -> str:
        """Stores something for `keep`; its digest."""
        ...

    def get(self, digest: str) -> bytes:
        """What `put` stored, in an earlier attempt too."""
        ...

    def keep(self, state: Json, digests: Sequence[str]) -> None:
        """Keeps a state for another attempt, with what it names; the run may pause behind it."""

    def kept(self) -> Json | None:
        """The state that an earlier attempt kept."""
        ...


@dataclass(frozen=True)
class Trained:
    """What came out.

    Attributes:
        files: path to content, without pickle: `config.json`, `model.safetensors`, `model.onnx`, `labels.json`, ...
        results: figures by name; `baseline.` ones are those of the trivial baseline on the same held-out rows.
        parameter_count: of the model.
    """

    files: dict[str, bytes]
    results: dict[str, float]
    parameter_count: int


class Predictor(Protocol):
    """A trained model, read back from its files."""

    def predict(self, inputs: list[Any]) -> list[Any]: ...


@dataclass(frozen=True)
class Algorithm:
    """One entry of the catalogue as its engine declares it.

    Attributes:
        name: `tabular-classification`, ...
        task: `classification`, `detection`, ...
        framework: `pytorch`, `scikit-learn`.
        parameters: JSON Schema (draft 2020-12) with a default for each property.
        train: (train rows, held-out rows or None, parameters with defaults filled in, seed, watch) -> Trained.
        load: files -> Predictor.
        columns: (what it reads) parameter names that hold column names.
    """

    name: str
    task: str
    framework: str
    parameters: Json
    train: Callable[[Table, Table | None, Json, int, Watch], Trained]
    load: Callable[[dict[str, bytes]], Predictor]
    columns: tuple[str, ...] = field(default=())
