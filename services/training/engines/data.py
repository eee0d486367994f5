"""Rows of dataset versions, checked and encoded for the phases of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError
from libs.compute.versions import read_rows
from services.training.domain.spec import Phase, TrainingSpec
from services.training.engines.base import BaseText
from services.training.engines.methods import METHODS
from services.training.engines.methods.method import Answers, Arrays, Columns, Reading


@dataclass(frozen=True)
class Source:
    """A dataset version that the task may read."""

    store: BlobStore
    manifest_digest: str


def read_columns(source: Source, spec: TrainingSpec) -> Columns:
    """The columns that the phases need, as text; nulls become empty.

    Raises:
        EngineError: CONTENT_INVALID, a column is missing or is not text, or there are no rows.
    """
    names = sorted({column for phase in spec.phases for column in phase.columns})
    columns: Columns = {name: [] for name in names}
    for batch in read_rows(source.store, source.manifest_digest, names):
        for name in names:
            columns[name].extend(_texts(batch, name))
    if not any(columns.values()):
        raise EngineError("CONTENT_INVALID", "The dataset version has no rows.", detail="no rows")
    return columns


def _texts(batch: pa.RecordBatch, name: str) -> Iterator[str]:
    if name not in batch.schema.names:
        have = ", ".join(batch.schema.names)
        raise EngineError("CONTENT_INVALID", f"The dataset version has no column {name!r}; it has {have}.", detail=name)
    array = batch.column(name)
    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type):
        raise EngineError("CONTENT_INVALID", f"Column {name!r} holds {array.type}, not text.", detail=name)
    yield from ("" if value is None else str(value) for value in array.to_pylist())


def encode_phase(
    text: BaseText,
    columns: Columns,
    spec: TrainingSpec,
    number: int,
    *,
    heldout: bool = False,
    teacher: Answers | None = None,
) -> Arrays | None:
    """Encodes as many random rows as the phase will read, no more: a fixed number of steps rarely needs all of them.

    Args:
        number: of the phase.
        heldout: a fixed small number of rows instead.
        teacher: gives the answers, for a phase that copies them.

    Returns:
        Arrays by name; None when no row fits the phase.
    """
    phase = spec.phases[number]
    learning = METHODS[phase.method]
    count = len(columns[phase.text_column])
    order = np.random.default_rng([spec.seed & 0xFFFFFFFFFFFFFFFF, number, int(heldout)]).permutation(count)
    wanted = learning.heldout_rows if heldout else phase.steps * phase.batch_size
    length = spec.architecture.sequence_length
    return learning.encode(Reading(text, columns, phase, order, length, wanted, teacher))


def nothing_to_learn(phase: Phase) -> str:
    """What no row has, in words."""
    if phase.compares:
        pair = f"{phase.chosen_column!r} and another one in {phase.rejected_column!r}"
        return f"no row has an answer in {pair} beside {phase.text_column!r}"
    if not phase.has_answers:
        return f"no row has text in {phase.text_column!r}"
    wanted = f" among the {len(phase.answers)} listed answers" if phase.answers else ""
    return f"no row has an answer in {phase.answer_column!r}{wanted} beside {phase.text_column!r}"
