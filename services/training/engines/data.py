"""Rows of dataset versions, checked and encoded for the phases of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError
from libs.compute.versions import read_rows
from services.training.domain.spec import Method, Phase, TrainingSpec
from services.training.engines.encode import encode_examples, pack
from services.training.engines.heldout import ANSWER_ROWS, PACKED_ROWS
from services.training.engines.prepared import Arrays, phase_arrays
from services.training.engines.tokenizer import SpecialTokens

Columns = dict[str, list[str]]


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
    tokenizer: Tokenizer,
    special: SpecialTokens,
    columns: Columns,
    spec: TrainingSpec,
    number: int,
    *,
    heldout: bool = False,
) -> Arrays | None:
    """Encodes as many random rows as the phase will read, no more: a fixed number of steps rarely needs all of them.

    Args:
        number: of the phase.
        heldout: a fixed small number of rows instead.

    Returns:
        Arrays by name; None when no row fits the phase.
    """
    phase = spec.phases[number]
    length = spec.architecture.sequence_length
    texts = columns[phase.text_column]
    order = np.random.default_rng([spec.seed & 0xFFFFFFFFFFFFFFFF, number, int(heldout)]).permutation(len(texts))
    if phase.method is Method.PRETRAIN:
        wanted = PACKED_ROWS if heldout else phase.steps * phase.batch_size
        sequences = _pack_enough(tokenizer, special, texts, order, length, wanted)
        return phase_arrays(sequences, None) if len(sequences) else None
    wanted = ANSWER_ROWS if heldout else phase.steps * phase.batch_size
    rows = _answered(columns, phase, order, wanted)
    examples = encode_examples(tokenizer, special, rows, phase, length)
    return phase_arrays(None, examples) if len(examples) else None


def _pack_enough(
    tokenizer: Tokenizer, special: SpecialTokens, texts: list[str], order: np.ndarray, length: int, wanted: int
) -> np.ndarray:
    """Sequences from texts in the given order until there are `wanted` or the texts end."""
    # A token stands for two to five characters: three is a first guess, and the loop takes more where that was low.
    parts: list[np.ndarray] = []
    found = start = 0
    while found < wanted and start < len(order):
        end, characters = start, 0
        while end < len(order) and characters < (wanted - found) * length * 3:
            characters += len(texts[order[end]])
            end += 1
        sequences = pack(tokenizer, special, (texts[index] for index in order[start:end]), length)
        parts.append(sequences)
        # The rest of a part that fills no sequence is dropped.
        found, start = found + len(sequences), end
    packed = np.concatenate(parts) if parts else np.zeros((0, length), dtype=np.int32)
    return packed[:wanted]


def _answered(columns: Columns, phase: Phase, order: np.ndarray, wanted: int) -> Iterator[tuple[str, str]]:
    texts, answers, known = columns[phase.text_column], columns[phase.answer_column], set(phase.answers)
    taken = 0
    for index in order:
        answer = answers[index]
        if texts[index] and answer and (not known or answer in known):
            yield texts[index], answer
            taken += 1
            if taken == wanted:
                return
