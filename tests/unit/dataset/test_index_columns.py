"""An index of many rows takes no memory for each of them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import orjson

from libs.common.blobs import BlobStore
from libs.compute.versions import load_index
from services.dataset.engines.access import StoreBlobs
from services.dataset.engines.index import save
from services.dataset.engines.index_columns import IndexColumns

PIECE, PIECES = 50_000, 30


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    blobs = StoreBlobs(BlobStore(f"file://{tmp_path}"))
    part, random = blobs.write(b"part"), np.random.default_rng(0)
    whole = random.integers(0, 256, (PIECE, 32), np.uint8)
    some = np.arange(PIECE, dtype=np.int32)
    tracemalloc.start()
    written = IndexColumns()
    for number in range(PIECES):
        whole[:, 0] = number
        written.add(row_ids=whole, part=np.zeros_like(some), slot=some, size=some, source=some % 7, position=some)
    index = written.index([part], [str(number) for number in range(7)], {"text": "string"})
    saved = save(index, blobs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 84 MB of columns; a stride of a million rows is looked at as a whole, 8 bytes each.
    assert peak < 40e6
    found = load_index(orjson.loads(blobs.read(saved.manifest_digest)), blobs)
    assert len(found) == PIECE * PIECES
    assert (found.row_ids[-PIECE:] == whole).all()
    assert found.position[PIECE : PIECE + 3].tolist() == [0, 1, 2]
