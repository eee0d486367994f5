"""Dataset versions as a stream of texts: a few rows at a time, whatever their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import orjson
import pyarrow as pa

from libs.common.blobs import BlobStore
from libs.common.blobs.manifest import Json
from libs.compute.context import EngineError
from libs.compute.versions import JSON, STRING, StoreParts, VersionReader, load_window
from services.training.domain.spec import Method, Phase

Columns = dict[str, list[str]]

# Rows that are text and tokens in memory at once: enough for the threads of the tokenizer, some MiB of prose.
BATCH_ROWS = 2048
# Rows whose index is in memory: a segment of it.
_WINDOW_ROWS = 65_536


class Source:
    """A dataset version, or another manifest, that the task may read.

    Attributes:
        rows_read: rows of it that were read so far, each time counted.
    """

    def __init__(self, store: BlobStore, manifest_digest: str) -> None:
        self.store = store
        self.manifest_digest = manifest_digest
        self.rows_read = 0

    @cached_property
    def _manifest(self) -> Json:
        return self.store.load_manifest_sync(self.manifest_digest)

    @property
    def row_count(self) -> int:
        """Rows of the version."""
        return int(self._manifest["row_count"])

    def require(self, names: Sequence[str]) -> None:
        """Raises CONTENT_INVALID where a column is missing, or there are no rows."""
        have = [column["name"] for column in self._manifest["columns"]]
        if not self.row_count:
            raise EngineError("CONTENT_INVALID", "The dataset version has no rows.", detail="no rows")
        for name in names:
            if name not in have:
                message = f"The dataset version has no column {name!r}; it has {', '.join(have)}."
                raise EngineError("CONTENT_INVALID", message, detail=name)

    def batches(self, names: Sequence[str], start: int = 0) -> Iterator[tuple[int, Columns]]:
        """Rows from `start` on, in order: the number of the first one, and columns as text; nulls are empty.

        Raises:
            EngineError: CONTENT_INVALID, as `require`.
        """
        self.require(names)
        for window in range(start, self.row_count, _WINDOW_ROWS):
            yield from self.window(names, window, min(self.row_count, window + _WINDOW_ROWS))

    def window(self, names: Sequence[str], start: int, stop: int) -> Iterator[tuple[int, Columns]]:
        """The same for rows [start, stop), at most some ten thousand."""
        index = load_window(self._manifest, self.store.open, start, stop)
        reader = VersionReader(index, StoreParts(self.store))
        for at in range(0, len(index), BATCH_ROWS):
            numbers = np.arange(at, min(len(index), at + BATCH_ROWS))
            columns = {name: _texts(reader.column(name, numbers), index.columns[name]) for name in names}
            self.rows_read += len(numbers)
            yield start + at, columns

    def columns_with_text(self, names: Sequence[str]) -> list[str]:
        """Those of the columns that have a text in some row; reads up to the first one."""
        missing, found = list(dict.fromkeys(names)), list[str]()
        for _, columns in self.batches(missing):
            found += [name for name in missing if any(columns[name])]
            missing = [name for name in missing if name not in found]
            if not missing:
                break
        return found


def _texts(values: pa.Array, kind: str) -> list[str]:
    if kind == STRING:
        return values.fill_null("").to_pylist()
    if kind == JSON:
        # A text among lists and objects is written as JSON too.
        return [orjson.loads(value) if value.startswith('"') else value for value in values.fill_null("").to_pylist()]
    return ["" if value is None else str(value) for value in values.to_pylist()]


def nothing_to_learn(phase: Phase) -> str:
    """What no row has, in words."""
    if phase.messages_column:
        return "no conversation fits with an answer that counts"
    if phase.compares:
        pair = f"{phase.chosen_column!r} and another one in {phase.rejected_column!r}"
        return f"no row has an answer in {pair} beside {phase.text_column!r}"
    if phase.method is Method.PRETRAIN:
        return f"the texts in {phase.text_column!r} together do not fill one sequence of the context"
    if not phase.has_answers:
        return f"no row has text in {phase.text_column!r}"
    wanted = f" among the {len(phase.answers)} listed answers" if phase.answers else ""
    return f"no row has an answer in {phase.answer_column!r}{wanted} beside {phase.text_column!r}"
