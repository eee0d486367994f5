"""Encoded rows on the local disk: written in the order of the version, read in any other; memory does not grow with
the tokens."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from libs.common.blobs import BlobStore
from services.training.engines.encode import Array, Encoded, starts_of

# Rows that are read from the files for one piece of an array.
_PIECE_ROWS = 4096


@dataclass(frozen=True)
class FileArray:
    """An array whose bytes come piece by piece.

    Attributes:
        pieces: gives them from the beginning, each time it is called.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[bytes]]

    def npy(self) -> Iterator[bytes]:
        """The bytes that `numpy.save` would write."""
        header = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(header, described)
        yield header.getvalue()
        yield from self.pieces()


def in_memory(array: Array) -> FileArray:
    """A small array."""
    return FileArray(array.dtype, array.shape, lambda: iter([array.tobytes()]))


class EncodedRows:
    """Encoded rows of a version in files of a folder.

    Attributes:
        notes: sums of what was told about the rows.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dtypes: dict[str, np.dtype] = {}
        self._rows: list[Array] = []
        self._lengths: list[Array] = []
        self._by_example: dict[str, list[Array]] = {}
        self.notes: dict[str, int] = {}

    def add(self, encoded: Encoded) -> None:
        """Adds rows that come behind those before.

        Args:
            encoded: its `kept` are numbers of rows of the version.
        """
        self._rows.append(encoded.kept)
        self._lengths.append(np.diff(encoded.starts).astype(np.int32))
        for name, array in encoded.by_token.items():
            self._dtypes[name] = array.dtype
            with (self._folder / name).open("ab") as file:
                file.write(array.tobytes())
        for name, array in encoded.by_example.items():
            self._by_example.setdefault(name, []).append(array)
        for name, count in encoded.notes.items():
            self.notes[name] = self.notes.get(name, 0) + count

    def in_order(self, order: Array) -> OrderedRows:
        """The rows of `order` that were kept, in that order.

        Args:
            order: numbers of rows of the version.
        """
        rows = _concatenated(self._rows, np.int64)
        lengths = _concatenated(self._lengths, np.int32)
        each = len(lengths) // max(1, len(rows))
        places = np.searchsorted(rows, order)
        places = places[rows[np.minimum(places, len(rows) - 1)] == order] if len(rows) else places[:0]
        by_example = {name: _concatenated(parts, parts[0].dtype) for name, parts in self._by_example.items()}
        return OrderedRows(self._folder, self._dtypes, lengths, by_example, places, each)


class OrderedRows:
    """Encoded rows in the order in which a phase wants them.

    Args:
        folder: with a file of the bytes of each array with an entry a token.
        dtypes: of these arrays by name.
        lengths: tokens of each example in the files, int32.
        by_example: arrays with an entry an example.
        places: of the wanted rows in the files.
        each: examples of a row.

    Attributes:
        lengths: tokens of each example, int32.
    """

    def __init__(
        self,
        folder: Path,
        dtypes: dict[str, np.dtype],
        lengths: Array,
        by_example: dict[str, Array],
        places: Array,
        each: int,
    ) -> None:
        self._folder = folder
        self._dtypes = dtypes
        self._starts = starts_of(lengths)
        self._by_example = by_example
        self._places = places
        self._each = each
        examples = (places[:, None] * each + np.arange(each)).reshape(-1)
        self.lengths = lengths[examples]
        self._examples = examples

    def __len__(self) -> int:
        return len(self._places)

    @property
    def token_count(self) -> int:
        """Tokens of all rows."""
        return int(self.lengths.sum(dtype=np.int64))

    def arrays(self) -> dict[str, FileArray]:
        """The arrays of a phase by name: tokens, where examples start, and what else there is of each."""
        found = {
            name: FileArray(dtype, (self.token_count,), lambda name=name: self.pieces(name))
            for name, dtype in self._dtypes.items()
        }
        found["starts"] = in_memory(starts_of(self.lengths))
        return found | {name: in_memory(array[self._examples]) for name, array in self._by_example.items()}

    def pieces(self, name: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes of an array with an entry a token, row by row, of rows [start, stop)."""
        size = self._dtypes[name].itemsize
        with (self._folder / name).open("rb") as file:
            wanted = self._places[start : len(self) if stop is None else max(0, stop)]
            for at in range(0, len(wanted), _PIECE_ROWS):
                places = wanted[at : at + _PIECE_ROWS] * self._each
                begins = self._starts[places] * size
                sizes = self._starts[places + self._each] * size - begins
                reads = zip(sizes.tolist(), begins.tolist(), strict=True)
                yield b"".join([os.pread(file.fileno(), length, begin) for length, begin in reads])


def store_shard(store: BlobStore, encoded: Encoded, next_row: int) -> str:
    """Stores a shard for an attempt after this one; digest of its manifest.

    Args:
        next_row: number of the row behind it.
    """
    arrays = {
        "kept": encoded.kept,
        "starts": encoded.starts,
        **{f"by_token/{name}": array for name, array in encoded.by_token.items()},
        **{f"by_example/{name}": array for name, array in encoded.by_example.items()},
    }
    entries: list[dict[str, object]] = []
    for name, array in arrays.items():
        blob = store.put_sync(array.tobytes())
        entries.append({**blob.entry(name), "dtype": array.dtype.str})
    return store.commit_sync({"kind": "training.shard", "next_row": next_row, "notes": encoded.notes, "blobs": entries})


def load_shard(store: BlobStore, digest: str) -> tuple[Encoded, int]:
    """What `store_shard` stored."""
    manifest = store.load_manifest_sync(digest)
    arrays = {
        str(entry["path"]): np.frombuffer(store.read_sync(entry["sha256"]), dtype=np.dtype(entry["dtype"]))
        for entry in manifest["blobs"]
    }

    def below(part: str) -> dict[str, Array]:
        return {path.removeprefix(part): array for path, array in arrays.items() if path.startswith(part)}

    encoded = Encoded(arrays["kept"], arrays["starts"], below("by_token/"), below("by_example/"), manifest["notes"])
    return encoded, int(manifest["next_row"])


def together(batches: list[Encoded]) -> Encoded:
    """Encoded batches as one."""
    first = batches[0]
    return Encoded(
        np.concatenate([batch.kept for batch in batches]),
        starts_of(np.concatenate([np.diff(batch.starts) for batch in batches])),
        {name: np.concatenate([batch.by_token[name] for batch in batches]) for name in first.by_token},
        {name: np.concatenate([batch.by_example[name] for batch in batches]) for name in first.by_example},
        {name: sum(batch.notes[name] for batch in batches) for name in first.notes},
    )


def _concatenated(parts: list[Array], dtype: type | np.dtype) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0, dtype)
