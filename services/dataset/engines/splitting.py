"""Split: one version becomes a training and a test version that share no group and nothing that is alike."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np
import orjson

from libs.compute.context import EngineContext, EngineError
from libs.compute.versions import VersionReader
from services.dataset.engines.access import StoreBlobs, open_version
from services.dataset.engines.alike import Alike, find_leaks
from services.dataset.engines.index import save
from services.dataset.engines.report import example_text, version_result
from services.dataset.engines.shards import map_shards
from services.dataset.engines.signing import SHARD_ROWS, Signed, sign, sign_shard

_EXAMPLES = 20
_SIGNATURE_SHARE = 0.5


def run(ctx: EngineContext) -> dict[str, Any]:
    """Splits one version.

    The spec names `version` and `grant` (manifest to split), `group_column` (`source`: the provenance), `text_column`,
    `test_fraction`, `near_duplicate_threshold` and `seed`.

    Returns:
        `train` and `test`, each as `report.version_result`.

    Raises:
        EngineError: CONTENT_INVALID, when there are fewer than two groups or nothing is left for training.
    """
    started = time.monotonic()
    spec = ctx.spec
    store = ctx.blobs_read(spec["grant"])
    blobs = StoreBlobs(ctx.blobs_write, store)
    reader = open_version(store, spec["version"], blobs)
    index = reader.index
    groups = group_codes(reader, spec["group_column"])
    is_test = choose_test_rows(groups, spec["test_fraction"], spec["seed"])
    leaks = _leaks(ctx, reader, is_test)
    keep_train = ~is_test
    keep_train[[leak.row for leak in leaks]] = False
    if not keep_train.any():
        raise EngineError("CONTENT_INVALID", "every training row repeats a test row; nothing is left", detail="no rows")
    train, test = save(index.select(keep_train), blobs), save(index.select(is_test), blobs)
    seconds = time.monotonic() - started
    leakage = {"leakage_count": len(leaks), "leakage_examples": _examples(reader, spec["text_column"], leaks)}
    ctx.progress(1.0, f"{train.row_count:,} rows to train, {test.row_count:,} to test", rows=len(index))
    train_report = {"rows_in": len(index), "rows_out": train.row_count, "seconds": seconds, **leakage}
    test_report = {"rows_in": len(index), "rows_out": test.row_count, "seconds": seconds}
    return {"train": version_result(train, train_report, 0), "test": version_result(test, test_report, 0)}


def group_codes(reader: VersionReader, column: str) -> list[bytes]:
    """What each row's group is: the JSON of the column's value; a row without a value is a group of its own.

    Args:
        reader: The version.
        column: A column, or `source` for where the row comes from.
    """
    index = reader.index
    if column == "source" and column not in index.columns:
        return [index.sources[code].encode() for code in index.source]
    values = reader.column(column, np.arange(len(index))).to_pylist()
    return [
        b"row " + index.row_ids[row].tobytes() if value is None else orjson.dumps(value)
        for row, value in enumerate(values)
    ]


def choose_test_rows(groups: list[bytes], fraction: float, seed: int) -> np.ndarray:
    """Which rows are on the test side: whole groups, in an order that only seed and group decide, until the share is
    reached.

    A group is taken when that brings the share nearer to `fraction`. So the choice for one group does not depend on
    the order of the rows, and as little as can be on the other groups.

    Args:
        groups: Group of each of the n rows.
        fraction: Wanted share of rows, between 0 and 1.
        seed: Another one gives another choice.

    Returns:
        (n,) bool, at least one group on each side.

    Raises:
        EngineError: CONTENT_INVALID, when there are fewer than two groups.
    """
    sizes: dict[bytes, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    if len(sizes) < 2:
        message = "all rows are of one group, and a group is not split; group by a column with several values"
        raise EngineError("CONTENT_INVALID", message, detail="one group")
    salt = str(seed).encode() + b"\n"
    order = sorted(sizes, key=lambda group: hashlib.sha256(salt + group).digest())
    wanted = fraction * len(groups)
    chosen: set[bytes] = set()
    taken = 0
    for group in order:
        if abs(taken + sizes[group] - wanted) < abs(taken - wanted):
            chosen.add(group)
            taken += sizes[group]
    if not chosen:
        chosen = {min(order, key=lambda group: sizes[group])}
    if len(chosen) == len(sizes):
        chosen.discard(max(order, key=lambda group: sizes[group]))
    return np.array([group in chosen for group in groups], bool)


def _leaks(ctx: EngineContext, reader: VersionReader, is_test: np.ndarray) -> list[Alike]:
    spec = ctx.spec
    column, threshold, total = spec["text_column"], spec["near_duplicate_threshold"], len(reader.index)
    shards = [
        (spec["grant"], spec["version"], column, threshold, start, min(total, start + SHARD_ROWS))
        for start in range(0, total, SHARD_ROWS)
    ]

    def local(_grant: str, _version: str, column: str, threshold: float, start: int, stop: int) -> Signed:
        return sign(reader, column, threshold, start, stop)

    signed: list[Signed] = []
    for shard in map_shards(sign_shard, shards, local, ctx.log):
        ctx.stop_if_cancelled()
        signed.append(shard)
        done = min(total, len(signed) * SHARD_ROWS)
        ctx.progress(_SIGNATURE_SHARE * done / total, f"{done:,} of {total:,} rows signed", rows=done)
    ctx.progress(_SIGNATURE_SHARE, "Looking for rows that are alike across the split")

    def compared(share: float) -> None:
        ctx.stop_if_cancelled()
        ctx.progress(_SIGNATURE_SHARE + (0.95 - _SIGNATURE_SHARE) * share)

    sets = np.concatenate([shard.sets for shard in signed])
    bands = np.concatenate([shard.bands for shard in signed], axis=1)
    return find_leaks(sets, bands, is_test, threshold, lambda rows: reader.texts(column, rows), compared)


def _examples(reader: VersionReader, column: str, leaks: list[Alike]) -> list[dict[str, Any]]:
    some = leaks[:_EXAMPLES]
    texts = reader.texts(column, np.array([leak.row for leak in some], np.int64))
    return [
        {
            "train_row_id": reader.index.id_of(leak.row),
            "test_row_id": reader.index.id_of(leak.other),
            "text": example_text(text),
            "similarity": leak.similarity,
        }
        for leak, text in zip(some, texts, strict=True)
    ]
