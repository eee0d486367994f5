"""Rows of a version to the arrays of a phase: chosen at random, encoded shard by shard, put in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.compute.context import EngineContext
from services.training.domain.spec import Method, Phase
from services.training.engines.data import Source
from services.training.engines.encode import Array, Encoded
from services.training.engines.encoded_rows import (
    EncodedRows,
    FileArray,
    OrderedRows,
    load_shard,
    store_shard,
    together,
)
from services.training.engines.methods import learning_of
from services.training.engines.methods.method import Columns, Reading, RowBatch

# Tokens of a shard: some seconds of work, which is what a kill costs, and some ten MiB of memory.
SHARD_TOKENS = 4 << 20
# Rows of a shard that a teacher answers: it takes a good part of a second for each on a CPU.
TAUGHT_ROWS = 256
_INT = np.dtype(np.int32)
# Of the texts that are encoded at first; a little more than they will give.
_CHARACTERS_A_TOKEN, _MORE = 4.0, 1.05

# Stores what is known of the shards by name as the task's checkpoint.
Keep = Callable[[dict[str, list[str]]], None]
Arrays = dict[str, FileArray]


class Shards:
    """The shards of a task that are complete, for the next attempt.

    Args:
        store: of the task.
        known: digests by name of what they are of, from an earlier attempt.
        keep: called with all of them when another one is complete; None: nobody goes on with them.
    """

    def __init__(self, store: BlobStore, known: dict[str, list[str]] | None = None, keep: Keep | None = None) -> None:
        self._store = store
        self._known = {name: list(digests) for name, digests in (known or {}).items()}
        self._keep = keep

    def found(self, name: str) -> Iterator[tuple[Encoded, int]]:
        """Complete shards in order, each with the number of the row behind it."""
        for number, digest in enumerate(self._known.get(name, ())):
            try:
                yield load_shard(self._store, digest)
            except DomainError:
                # It waited so long that it was swept away: this one and those behind it are made again.
                del self._known[name][number:]
                return

    def add(self, name: str, encoded: Encoded, next_row: int) -> None:
        """Keeps a complete shard."""
        if self._keep is not None:
            self._known.setdefault(name, []).append(store_shard(self._store, encoded, next_row))
            self._keep(self._known)


class PhaseEncoder:
    """Encodes the rows of one phase from one version.

    Args:
        ctx: told how far it is, and asked whether to go on.
        name: of the phase, and whether its rows are held out, as `sft/train`.
        reading: how a row becomes tokens.
        shards: complete ones.
    """

    def __init__(self, ctx: EngineContext, name: str, source: Source, reading: Reading, shards: Shards) -> None:
        self._ctx = ctx
        self._name = name
        self._source = source
        self._reading = reading
        self._learning = learning_of(reading.phase)
        self._shards = shards
        self.notes: dict[str, int] = {}

    def arrays(self, order: Array, wanted: int, folder: Path) -> Arrays | None:
        """The arrays of the phase; they read files in the folder.

        Args:
            order: all rows of the version, in the order in which they are wanted.
            wanted: most rows, or sequences of pre-training.

        Returns:
            None when no row fits the phase.
        """
        self._source.require(self._reading.phase.columns)
        if self._reading.phase.method is Method.PRETRAIN:
            return self._packed(order, wanted, folder)
        rows = self._encoded(self._usable(order)[:wanted], folder, "")
        return rows.arrays() if len(rows) else None

    def _usable(self, order: Array) -> Array:
        """The rows that have what the phase learns from."""
        learns, phase = self._learning.learns, self._reading.phase
        if learns is None:
            return order
        usable = self._measured(np.bool_, lambda columns: learns(phase, columns))
        return order[usable[order]]

    def _measured(self, dtype: type, measure: Callable[[Columns], list[bool] | list[int]]) -> Array:
        """A number of each row of the version."""
        found = np.zeros(self._source.row_count, dtype)
        for first, columns in self._source.batches(self._reading.phase.columns):
            self._ctx.stop_if_cancelled()
            values = measure(columns)
            found[first : first + len(values)] = values
        return found

    def _packed(self, order: Array, wanted: int, folder: Path) -> Arrays | None:
        """Sequences without padding from texts in the given order until there are `wanted` or the texts end."""
        column, length = self._reading.phase.text_column, self._reading.length
        sizes = self._measured(np.int32, lambda columns: [len(text) for text in columns[column]])
        texts = OrderedTexts(np.cumsum(sizes[order], dtype=np.int64), wanted * length)
        parts: list[tuple[int, int, int]] = []
        # A token stands for two to five characters: three is a first guess, and the loop takes more where that was low.
        found = start = 0
        while found < wanted and start < len(order):
            end = texts.behind(start, (wanted - found) * length * 3)
            while end > texts.encoded:
                first, last = texts.encoded, texts.next_end(end)
                part = folder / str(first)
                part.mkdir()
                texts.add(self._encoded(order[first:last], part, f"/{first}"))
            # The rest of a part that fills no sequence is dropped.
            count = min(texts.tokens(start, end) // length, wanted - found)
            parts.append((start, end, count * length))
            found, start = found + count, end
        if not found:
            return None
        return {"sequences": FileArray(_INT, (found, length), lambda: texts.pieces(parts))}

    def _encoded(self, chosen: Array, folder: Path, part: str) -> OrderedRows:
        """Encodes rows in the order of the version, from the first one that no complete shard has."""
        rows, next_row, name = EncodedRows(folder), 0, self._name + part
        for shard, after in self._shards.found(name):
            rows.add(shard)
            next_row = after
        wanted = np.zeros(self._source.row_count, np.bool_)
        wanted[chosen] = True
        held: list[Encoded] = []
        tokens, kept, taught = 0, next_row, self._reading.teacher is not None
        for first, columns in self._batches(next_row):
            self._ctx.stop_if_cancelled()
            encoded = self._batch(first, columns, wanted)
            rows.add(encoded)
            held.append(encoded)
            tokens += int(encoded.starts[-1])
            next_row = first + len(next(iter(columns.values())))
            if tokens >= SHARD_TOKENS or (taught and wanted[kept:next_row].sum() >= TAUGHT_ROWS):
                self._shards.add(name, together(held), next_row)
                held, tokens, kept = [], 0, next_row
                self._ctx.progress(0.0, f"encoding rows for {name}: {next_row:,} of {len(wanted):,}")
        if taught and held:
            self._shards.add(name, together(held), next_row)
        for note, count in rows.notes.items():
            self.notes[note] = self.notes.get(note, 0) + count
        return rows.in_order(chosen)

    def _batches(self, start: int) -> Iterator[tuple[int, Columns]]:
        """The rows from `start` on, a few at a time where a teacher answers them."""
        for first, columns in self._source.batches(self._reading.phase.columns, start):
            count = len(next(iter(columns.values())))
            size = TAUGHT_ROWS if self._reading.teacher is not None else count
            for at in range(0, count, size):
                yield first + at, {name: column[at : at + size] for name, column in columns.items()}

    def _batch(self, first: int, columns: Columns, wanted: Array) -> Encoded:
        count = len(next(iter(columns.values())))
        places = np.flatnonzero(wanted[first : first + count])
        what = "validation version" if self._name.endswith("heldout") else "dataset version"
        batch = RowBatch(first, columns, places.tolist(), what)
        encoded = self._learning.encode(self._reading, batch)
        return replace(encoded, kept=first + places[encoded.kept])


def most_rows(phase: Phase, heldout: bool) -> int:
    """How many rows a phase wants: as many as its steps read, or a fixed small number of held-out ones."""
    return learning_of(phase).heldout_rows if heldout else phase.steps * phase.batch_size


class OrderedTexts:
    """Texts of pre-training in the order in which they are wanted, as far as they are encoded.

    Args:
        characters: up to the end of each text, int64.
        wanted: tokens.
    """

    def __init__(self, characters: Array, wanted: int) -> None:
        self._characters = characters
        self._wanted = wanted
        self._rows: list[OrderedRows] = []
        self._ends = np.zeros(1, np.int64)

    @property
    def encoded(self) -> int:
        """How many texts are encoded."""
        return len(self._ends) - 1

    def behind(self, start: int, characters: float) -> int:
        """The text behind those from `start` on that have so many characters together, at least."""
        before = int(self._characters[start - 1]) if start else 0
        end = int(np.searchsorted(self._characters, before + characters)) + 1
        return min(len(self._characters), end)

    def next_end(self, least: int) -> int:
        """Up to which text to encode next, so that the version is read once or twice and not for each part.

        Args:
            least: at least up to here.
        """
        seen = int(self._characters[self.encoded - 1]) / int(self._ends[-1]) if self.encoded else _CHARACTERS_A_TOKEN
        return max(least, self.behind(0, self._wanted * seen * _MORE))

    def add(self, rows: OrderedRows) -> None:
        """Adds the next texts."""
        self._rows.append(rows)
        self._ends = np.concatenate([self._ends, self._ends[-1] + np.cumsum(rows.lengths, dtype=np.int64)])

    def tokens(self, start: int, end: int) -> int:
        """Tokens of texts [start, end)."""
        return int(self._ends[end] - self._ends[start])

    def pieces(self, parts: Sequence[tuple[int, int, int]]) -> Iterator[bytes]:
        """Bytes of the tokens of parts: first text, text behind the last, how many tokens of them."""
        for start, end, count in parts:
            left, first = count * _INT.itemsize, 0
            for rows in self._rows:
                for piece in rows.pieces("tokens", max(0, start - first), end - first):
                    yield piece[:left]
                    left -= min(left, len(piece))
                first += len(rows)
