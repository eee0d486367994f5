"""Dataset versions as the tables that algorithms learn from: checked, without rows that have no answer, split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from libs.common.blobs import BlobStore
from libs.compute.context import EngineContext, EngineError
from libs.compute.numbers import number_or_text
from libs.compute.versions import ARROW, KIND, StoreParts, VersionIndex, VersionReader, load_index, to_json
from services.training.domain.algorithms import Role
from services.training.domain.leakage import MOST_LEAKED
from services.training.engines.algorithms.features import is_gap
from services.training.engines.algorithms.interface import Json, Table

Array = np.ndarray

HELDOUT_SHARE = 0.2
# With fewer, a fifth is no row or two.
_LEAST_ROWS = 10
_BATCH_ROWS = 4096
_SHOWN_ROWS = 10
# Dataset writes the name of a row's file there.
_FILE_NAME = "file_name"


def _no_file(name: str) -> bytes:
    raise EngineError("CONTENT_INVALID", f"No row has a file {name[:200]!r}.", detail=name[:200])


# Of an algorithm that reads no data.
NO_ROWS = Table((), lambda: iter(()), _no_file)


@dataclass(frozen=True)
class Rows:
    """Rows of a version that a task may read.

    Attributes:
        files: the store with the files of the rows; None where they have none.
        columns: those that are read, all of the version's where the algorithm takes what there is.
    """

    store: BlobStore
    files: BlobStore | None
    index: VersionIndex
    columns: tuple[str, ...]

    @classmethod
    def open(cls, ctx: EngineContext, part: str, named: Sequence[str] | None) -> Rows:
        """The rows that the spec grants under `part`.

        Args:
            named: columns to read; None: all.

        Raises:
            EngineError: CONTENT_INVALID for a column that is not there, or no rows.
        """
        given: Json = ctx.spec[part]
        store = ctx.blobs_read(given["grant"])
        index = load_index(store.load_manifest_sync(given["manifest_digest"]), StoreParts(store))
        have = ", ".join(index.columns) or "none"
        for name in named or ():
            if name not in index.columns:
                message = f"The {part} version has no column {name!r}; it has {have}."
                raise EngineError("CONTENT_INVALID", message, detail=name)
        if not len(index):
            raise EngineError("CONTENT_INVALID", f"The {part} version has no rows.", detail="no rows")
        files = ctx.blobs_read(given["media_grant"]) if given.get("media_grant") else None
        return cls(store, files, index, tuple(index.columns if named is None else named))

    def __len__(self) -> int:
        return len(self.index)

    def select(self, rows: Array) -> Rows:
        """These rows (positions or a mask)."""
        return Rows(self.store, self.files, self.index.select(rows), self.columns)

    def table(self) -> Table:
        """As an engine reads them."""
        return Table(self.columns, self._batches, self._media)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        # Not `reader.batch`, whose own columns may have the name of one of the version's.
        reader, kinds = VersionReader(self.index, StoreParts(self.store)), self.index.columns
        fields = [pa.field(name, ARROW[kinds[name]], metadata={KIND: kinds[name].encode()}) for name in self.columns]
        for start in range(0, len(self.index), _BATCH_ROWS):
            numbers = np.arange(start, min(len(self.index), start + _BATCH_ROWS))
            arrays = [reader.column(name, numbers) for name in self.columns]
            yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def values(self, column: str) -> list[Any]:
        """A whole column."""
        return VersionReader(self.index, StoreParts(self.store)).column(column, np.arange(len(self.index))).to_pylist()

    def _media(self, name: str) -> bytes:
        digest = self.digests.get(name)
        if digest is None or self.files is None:
            return _no_file(str(name))
        return self.files.read_sync(digest)

    @cached_property
    def digests(self) -> dict[str, str]:
        """File name to digest. Two files of one name would be one row's image under another row's label."""
        if self.index.media is None or _FILE_NAME not in self.index.columns:
            return {}
        found: dict[str, str] = {}
        for row, name in enumerate(self.values(_FILE_NAME)):
            digest = self.index.media_of(row)
            if name is not None and digest is not None and found.setdefault(name, digest) != digest:
                raise EngineError(
                    "CONTENT_INVALID", f"Two different files are called {name[:200]!r}.", detail=name[:200]
                )
        return found


def answered(rows: Rows, parameters: Json, roles: dict[str, Role], log: Any) -> Rows:
    """The rows that have the answer that is learned. Says which have not.

    Raises:
        EngineError: PREFLIGHT_FAILED, no row has one, or all have the same class.
    """
    for parameter, role in roles.items():
        if not role.is_answer:
            continue
        column: str = parameters[parameter]
        if column not in rows.index.columns:
            have = ", ".join(rows.index.columns)
            raise EngineError("CONTENT_INVALID", f"There is no column {column!r}; there are {have}.", detail=column)
        values = rows.values(column)
        has = np.array([not is_gap(value) for value in values], bool)
        if not has.any():
            raise _refused(f"No row has a value in {column!r}.")
        if not has.all():
            numbers = np.flatnonzero(~has) + 1
            shown = ", ".join(map(str, numbers[:_SHOWN_ROWS])) + (", ..." if len(numbers) > _SHOWN_ROWS else "")
            log(f"{len(numbers):,} rows have no value in {column!r} and are left out: {shown}")
        known = {value for value in values if not is_gap(value)}
        if role is not Role.NUMBER and len(known) == 1 and has.sum() > 1:
            raise _refused(f"All rows have the same value in {column!r}; at least two are needed.")
        rows = rows.select(has)
    return rows


def split(rows: Rows, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from, and a fifth of them held out: by row id, so that equal rows are on the same side.

    Raises:
        EngineError: PREFLIGHT_FAILED, there are too few.
    """
    if len(rows) < _LEAST_ROWS:
        raise _refused(f"There are {len(rows)} rows; at least {_LEAST_ROWS} are needed to hold some of them out.")
    held = _mixed(rows.index.row_ids, seed) < np.uint64(int(HELDOUT_SHARE * 2**64))
    if held.all() or not held.any():
        raise _refused("Nearly all rows are equal; none can be held out.")
    return rows.select(~held), rows.select(held)


def heldout_share(heldout: Rows, train: Rows) -> float:
    """Share of the held-out rows that are in the others exactly, 0 to 1.

    Raises:
        EngineError: PREFLIGHT_FAILED, there are too many.
    """
    theirs, ours = heldout.index.columns, train.index.columns
    # Ids are of typed values; the same table may have been read with another type.
    told = _ids if all(ours.get(name, kind) == kind for name, kind in theirs.items()) else _contents
    known = set(told(train))
    share = sum(row in known for row in told(heldout)) / len(heldout)
    if share > MOST_LEAKED:
        message = f"{share:.2%} of the rows of the validation version are in the dataset version too, exactly; at most "
        message += f"{MOST_LEAKED:.0%} may be. SplitVersion makes two versions without rows in common."
        raise EngineError("PREFLIGHT_FAILED", message, check="leakage", detail=message)
    return share


def _ids(rows: Rows) -> Iterator[bytes]:
    return (row.tobytes() for row in rows.index.row_ids)


def _contents(rows: Rows) -> Iterator[bytes]:
    """A digest of each row in which a number and the text of it are the same."""
    reader = VersionReader(rows.index, StoreParts(rows.store))
    for start in range(0, len(rows), _BATCH_ROWS):
        for row in reader.rows(np.arange(start, min(len(rows), start + _BATCH_ROWS))):
            texts = {
                name: number_or_text(value if isinstance(value, str) else to_json(value)) for name, value in row.items()
            }
            yield hashlib.sha256(to_json(texts).encode()).digest()


def _mixed(row_ids: Array, seed: int) -> Array:
    """(n,) uint64, a function of row id and seed (the finaliser of SplitMix64; Steele et al., 2014)."""
    first = np.ascontiguousarray(row_ids[:, :8]).view(np.uint64).reshape(-1)
    mixed = first ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _refused(message: str) -> EngineError:
    return EngineError("PREFLIGHT_FAILED", message, check="labels", detail=message)
