"""Compressed files: what is whole is read, what is cut or hostile is named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable

import pyarrow as pa
import pytest

from libs.archives import unpacking
from libs.archives.errors import UnreadableFile
from tests.unit.dataset.reading import values

ROWS = b"".join(b'{"n": %d}\n' % number for number in range(1000))


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_compressed_files_are_told_by_their_first_bytes(pack: Callable[[bytes], bytes]) -> None:
    assert values(pack(ROWS), "jsonl") == [{"n": number} for number in range(1000)]
    assert values(pack(b"a\tb\n1\t2,3\n"), "tsv") == [{"a": "1", "b": "2,3"}]
    # Members one after the other, as `cat a.gz b.gz` makes them.
    assert len(values(pack(ROWS) + pack(ROWS), "jsonl")) == 2000


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_cut_file_gives_what_was_before(pack: Callable[[bytes], bytes]) -> None:
    noise = b"".join(b'{"n": "%s"}\n' % json.dumps(str(hash((n, "x")))).encode().strip(b'"') for n in range(60_000))
    packed = pack(noise)
    *rows, last = values(packed[: len(packed) // 2], "jsonl")
    assert len(rows) > 1000
    assert rows[0] == json.loads(noise.split(b"\n")[0])
    assert "damaged or cut off" in last


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_bomb_is_not_unpacked(pack: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "FREE_BYTES", 1 << 16)
    bomb = pack(b'{"n": 1}\n' * 400_000)
    *rows, last = values(bomb, "jsonl")
    assert len(rows) < 200_000
    assert f"more than {unpacking.MAX_RATIO} times" in last


def test_tables_are_not_packed_twice() -> None:
    for format_name in ("xlsx", "parquet"):
        with pytest.raises(UnreadableFile, match="not packed again"):
            values(gzip.compress(ROWS), format_name)
