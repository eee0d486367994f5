"""How a dataset version lies in the blob store, for all who read one: engines of training and evaluation by a grant.

A version is a manifest (JSON) that names, as its first blob, an index (Arrow IPC: row_id, part, slot, size, source,
position, and media where rows have files) and behind it the parts (Arrow IPC files of rows). Where rows have files, a
manifest of those comes last. Versions share parts. The service `dataset` alone writes
them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from libs.common.blobs import BlobStore, Json, manifest_digests, nested_manifests

FORMAT = "argosy.rows/1"

# Types of columns. `int53`: integers that are exact as doubles too. `json`: anything, each value as JSON text.
STRING, BOOL, INT, LONG, DOUBLE, JSON = "string", "bool", "int53", "int64", "double", "json"

ARROW = {
    STRING: pa.string(),
    BOOL: pa.bool_(),
    INT: pa.int64(),
    LONG: pa.int64(),
    DOUBLE: pa.float64(),
    JSON: pa.string(),
}
# Metadata of a field: its type as above.
KIND = b"argosy.kind"
# A row may have a column of any name, also `row_id`: its columns are prefixed in a part.
COLUMN_PREFIX = "c."

# Decoded parts kept: a version in its original order needs one, a cleaned one two (old rows and changed rows).
_CACHED_PARTS = 4
_BATCH_ROWS = 4096

Row = dict[str, Any]


class Readable(Protocol):
    """What a reader needs of a store."""

    def read(self, digest: str) -> bytes:
        """The whole blob."""
        ...


@dataclass(slots=True)
class VersionIndex:
    """Rows of a version, column by column; n is the number of rows.

    Attributes:
        parts: digests of the parts.
        sources: distinct sources.
        columns: name to type, in order.
        row_ids: (n, 32) uint8, SHA-256 of the canonical content.
        part: (n,) int32, into `parts`.
        slot: (n,) int32, row inside the part.
        size: (n,) int32, bytes of canonical content.
        source: (n,) int32, into `sources`.
        position: (n,) int64, line or row in the source.
        media_blobs: digests of the files that rows have: images, sound, films.
        media: (n,) int32, into `media_blobs`, -1 for a row without; None where no row has one.
    """

    parts: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    row_ids: np.ndarray = field(default_factory=lambda: np.zeros((0, 32), np.uint8))
    part: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    slot: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    size: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    source: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    position: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    media_blobs: list[str] = field(default_factory=list)
    media: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.part)

    @property
    def byte_count(self) -> int:
        """Bytes of canonical content of all rows."""
        return int(self.size.sum(dtype=np.int64))

    def select(self, rows: np.ndarray) -> VersionIndex:
        """The index of these rows (positions or a mask), sharing `parts`, `sources` and `columns`."""
        return VersionIndex(
            self.parts,
            self.sources,
            self.columns,
            self.row_ids[rows],
            self.part[rows],
            self.slot[rows],
            self.size[rows],
            self.source[rows],
            self.position[rows],
            self.media_blobs,
            None if self.media is None else self.media[rows],
        )

    def id_of(self, row: int) -> str:
        """Row id in hexadecimal."""
        return self.row_ids[row].tobytes().hex()

    def media_of(self, row: int) -> str | None:
        """Digest of the row's file, if it has one."""
        at = -1 if self.media is None else int(self.media[row])
        return self.media_blobs[at] if at >= 0 else None


def load_index(manifest: Json, blobs: Readable) -> VersionIndex:
    """The index behind a manifest.

    Raises:
        ValueError: The manifest is of a format that this version does not know.
    """
    digest, parts = _digests(manifest)
    table = pa.ipc.open_file(pa.BufferReader(blobs.read(digest))).read_all()
    index = _index(manifest, parts, table)
    for media in nested_manifests(manifest):
        index.media_blobs = manifest_digests(orjson.loads(blobs.read(media)))
        index.media = table.column("media").to_numpy()
    return index


def load_window(manifest: Json, open_blob: Callable[[str], BinaryIO], start: int, stop: int) -> VersionIndex:
    """The index of rows [start, stop) alone, without their files; of the rest of the index at most a segment on each
    side is read.

    Args:
        manifest: of the version.
        open_blob: gives a blob as a seekable file.
        start: first row.
        stop: row after the last; rows behind the end of the version are not there.

    Raises:
        ValueError: The manifest is of a format that this version does not know.
    """
    digest, parts = _digests(manifest)
    # An index written before there were segments is one.
    rows = manifest.get("index_rows") or max(1, manifest["row_count"])
    with open_blob(digest) as file:
        reader = pa.ipc.open_file(pa.PythonFile(file, "r"))
        last = min(reader.num_record_batches, -(-stop // rows))
        segments = [reader.get_batch(number) for number in range(start // rows, last)]
        table = pa.Table.from_batches(segments, reader.schema).slice(start % rows, max(0, stop - start))
        return _index(manifest, parts, table)


# A media manifest is canonical JSON, so its entries are of one length: `{"blobs":[{"sha256":"..."},{"sha256":"..."}`.
_BEFORE_ENTRIES = len('{"blobs":[')
_ENTRY = len('{"sha256":""},') + 64
# Of the seven fields of an index, those that lead to files.
_ROW_ID_AND_MEDIA = pa.ipc.IpcReadOptions(included_fields=[0, 6])


def find_media(manifest: Json, open_blob: Callable[[str], BinaryIO], row_id: str) -> str | None:
    """Digest of the file of one row; None for a row without one, and for every row of a version without files. Of the
    index a segment at a time is in memory, of the list of files one entry.

    Args:
        manifest: of the version.
        open_blob: gives a blob as a seekable file.
        row_id: in hexadecimal.

    Raises:
        KeyError: No row has this id.
        ValueError: The manifest is of a format that this version does not know.
    """
    digest, _ = _digests(manifest)
    media = nested_manifests(manifest)
    if not media:
        return None
    wanted = pa.scalar(bytes.fromhex(row_id), pa.binary(32))
    with open_blob(digest) as file:
        reader = pa.ipc.open_file(pa.PythonFile(file, "r"), options=_ROW_ID_AND_MEDIA)
        for number in range(reader.num_record_batches):
            segment = reader.get_batch(number)
            at = pc.index(segment.column("row_id"), wanted).as_py()
            if at >= 0:
                place = segment.column("media")[at].as_py()
                return _media_entry(open_blob, media[0], place) if place >= 0 else None
    raise KeyError(row_id)


def _media_entry(open_blob: Callable[[str], BinaryIO], media: str, place: int) -> str:
    with open_blob(media) as file:
        file.seek(_BEFORE_ENTRIES + place * _ENTRY)
        return orjson.loads(file.read(_ENTRY - 1))["sha256"]


def _digests(manifest: Json) -> tuple[str, list[str]]:
    if manifest.get("format") != FORMAT:
        raise ValueError(f"manifest of unknown format {manifest.get('format')!r}")
    media = nested_manifests(manifest)
    index, *parts = (digest for digest in manifest_digests(manifest) if digest not in media)
    return index, parts


def _index(manifest: Json, parts: list[str], table: pa.Table) -> VersionIndex:
    ids = table.column("row_id").combine_chunks()
    data = ids.buffers()[1]
    source = table.column("source").combine_chunks()
    codes, sources = source.indices.to_numpy(zero_copy_only=False).astype(np.int32), source.dictionary
    if len(sources) > len(codes):
        # A few rows of a version with many sources.
        used, codes = np.unique(codes, return_inverse=True)
        sources, codes = sources.take(pa.array(used)), codes.astype(np.int32)
    return VersionIndex(
        parts=parts,
        sources=sources.to_pylist(),
        columns={column["name"]: column["kind"] for column in manifest["columns"]},
        row_ids=np.frombuffer(data or b"", np.uint8)[32 * ids.offset : 32 * (ids.offset + len(ids))].reshape(-1, 32),
        part=table.column("part").to_numpy(),
        slot=table.column("slot").to_numpy(),
        size=table.column("size").to_numpy(),
        source=codes,
        position=table.column("position").to_numpy(),
    )


class Part:
    """A part in memory."""

    def __init__(self, data: bytes) -> None:
        self.table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        self.kinds = {
            column.name.removeprefix(COLUMN_PREFIX): (column.metadata or {})[KIND].decode()
            for column in self.table.schema
            if column.name.startswith(COLUMN_PREFIX)
        }

    def column(self, name: str, kind: str, slots: np.ndarray) -> pa.Array:
        """Values of one column as type `kind`, at least as wide as the part's own; nulls where the part has none."""
        own = self.kinds.get(name)
        if own is None:
            return pa.nulls(len(slots), ARROW[kind])
        values = self.table.column(f"{COLUMN_PREFIX}{name}").take(pa.array(slots)).combine_chunks()
        return _cast(values, own, kind)

    def rows(self, slots: np.ndarray) -> list[Row]:
        """Whole canonical rows."""
        taken = self.table.take(pa.array(slots))
        rows: list[Row] = [{} for _ in range(len(slots))]
        for name, kind in self.kinds.items():
            for row, value in zip(rows, taken.column(f"{COLUMN_PREFIX}{name}").to_pylist(), strict=True):
                if value is not None:
                    row[name] = orjson.loads(value) if kind == JSON else value
        return rows


class VersionReader:
    """Reads rows of a version by their number. Not for two threads at once."""

    def __init__(self, index: VersionIndex, blobs: Readable) -> None:
        self.index = index
        self._blobs = blobs
        self._parts: OrderedDict[int, Part] = OrderedDict()

    def rows(self, numbers: np.ndarray) -> list[Row]:
        """Whole canonical rows, without provenance, in the order of `numbers`."""
        rows: list[Row] = [{} for _ in range(len(numbers))]
        for part, where, slots in self._by_part(numbers):
            for at, row in zip(where, part.rows(slots), strict=True):
                rows[at] = row
        return rows

    def column(self, name: str, numbers: np.ndarray) -> pa.Array:
        """One column of these rows, as the type that the version gives it."""
        kind = self.index.columns.get(name, STRING)
        pieces: list[pa.Array] = []
        order: list[np.ndarray] = []
        for part, where, slots in self._by_part(numbers):
            pieces.append(part.column(name, kind, slots))
            order.append(where)
        if not pieces:
            return pa.array([], ARROW[kind])
        joined = pieces[0] if len(pieces) == 1 else cast(pa.Array, pa.concat_arrays(pieces))
        back = np.empty(len(numbers), np.int64)
        back[np.concatenate(order)] = np.arange(len(numbers))
        return joined.take(pa.array(back))

    def texts(self, name: str, numbers: np.ndarray) -> list[str]:
        """One column as text: a missing value is empty, other types are written as JSON."""
        values = self.column(name, numbers).to_pylist()
        return ["" if value is None else value if isinstance(value, str) else to_json(value) for value in values]

    def batch(self, names: Sequence[str], numbers: np.ndarray) -> pa.RecordBatch:
        """These rows as `row_id` (hexadecimal), `source`, `position` and the named columns, which the version must
        have."""
        index = self.index.select(numbers)
        arrays: list[pa.Array] = [
            pa.array([row.tobytes().hex() for row in index.row_ids], pa.string()),
            pa.array([index.sources[code] for code in index.source], pa.string()),
            pa.array(index.position, pa.int64()),
        ]
        fields = [pa.field("row_id", pa.string()), pa.field("source", pa.string()), pa.field("position", pa.int64())]
        for name in names:
            kind = index.columns[name]
            arrays.append(self.column(name, numbers))
            fields.append(pa.field(name, ARROW[kind], metadata={KIND: kind.encode()}))
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def _by_part(self, numbers: np.ndarray) -> Iterator[tuple[Part, np.ndarray, np.ndarray]]:
        """For each part that has some of the rows: the part, places in `numbers`, slots in the part."""
        parts = self.index.part[numbers]
        slots = self.index.slot[numbers]
        for number in np.unique(parts):
            where = np.flatnonzero(parts == number)
            yield self._part(int(number)), where, slots[where]

    def _part(self, number: int) -> Part:
        part = self._parts.get(number)
        if part is None:
            part = self._parts[number] = Part(self._blobs.read(self.index.parts[number]))
            if len(self._parts) > _CACHED_PARTS:
                self._parts.popitem(last=False)
        else:
            self._parts.move_to_end(number)
        return part


def read_rows(store: BlobStore, manifest_digest: str, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """All rows of a version in order.

    Args:
        store: For example `ctx.blobs_read(grant)` with the grant of `DatasetService.GrantRead`.
        manifest_digest: Of the version.
        columns: Beside `row_id`, `source` and `position`; empty: all. One that the version lacks is left out.

    Yields:
        Batches of at most 4,096 rows.
    """
    index = load_index(store.load_manifest_sync(manifest_digest), StoreParts(store))
    reader = VersionReader(index, StoreParts(store))
    names = [name for name in columns or index.columns if name in index.columns]
    for start in range(0, len(index), _BATCH_ROWS):
        yield reader.batch(names, np.arange(start, min(len(index), start + _BATCH_ROWS)))


class StoreParts:
    """A blob store as `Readable`."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def read(self, digest: str) -> bytes:
        return self._store.read_sync(digest)


def to_json(value: object) -> str:
    """Canonical JSON text."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def _cast(values: pa.Array, own: str, kind: str) -> pa.Array:
    if own == kind:
        return values
    if kind == JSON:
        return pa.array([None if value is None else to_json(value) for value in values.to_pylist()], pa.string())
    return cast(pa.Array, pc.cast(values, ARROW[kind]))
