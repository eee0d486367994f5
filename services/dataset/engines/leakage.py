"""Leakage: which rows of a test version a training version has too, exactly or nearly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from libs.compute.context import EngineContext, EngineError
from libs.compute.versions import VersionReader
from services.dataset.engines.access import open_version
from services.dataset.engines.alike import Alike, find_leaks
from services.dataset.engines.minhash import choose_banding
from services.dataset.engines.recall import PLANTED, near_duplicate_report
from services.dataset.engines.report import example_text
from services.dataset.engines.shards import map_shards
from services.dataset.engines.signing import SHARD_ROWS, Signed, sign, sign_shard

_EXAMPLES = 20
_SIGNED_SHARE = 0.8
_SAMPLE_SEED = 0


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two versions, open for reading."""

    grant: str
    version: str
    column: str
    reader: VersionReader

    def texts(self, rows: np.ndarray) -> list[str]:
        """The texts of rows."""
        return self.reader.texts(self.column, rows)


def run(ctx: EngineContext) -> dict[str, Any]:
    """Compares a test version with a training version.

    The spec names `test` and `train` (manifests) with `test_grant` and `train_grant`, `text_column` and
    `train_text_column`, and `near_duplicate_threshold`. Gives `leakage`, fields of `argosy.dataset.v1.LeakageCheck`.

    Raises:
        EngineError: CONTENT_INVALID, when no row of one of them has text in its column: nothing was compared then.
    """
    started = time.monotonic()
    spec = ctx.spec
    threshold = spec["near_duplicate_threshold"]
    test = _open(ctx, spec["test_grant"], spec["test"], spec["text_column"])
    train = _open(ctx, spec["train_grant"], spec["train"], spec["train_text_column"])
    signing = _Signing(ctx, threshold, len(test.reader.index) + len(train.reader.index))
    tests = _joined(list(signing.of(test, "the test version")))
    # Most rows of a large training version are like no test row, and are not kept.
    like = _Like(tests)
    trains = _joined([like.some_of(signed) for signed in signing.of(train, "the training version")])
    ctx.progress(_SIGNED_SHARE, f"Comparing with {len(trains.rows):,} training rows that may be alike")

    def compared(share: float) -> None:
        ctx.stop_if_cancelled()
        ctx.progress(_SIGNED_SHARE + (0.95 - _SIGNED_SHARE) * share)

    exact = _exact(tests, trains)
    near = {
        row: leak for row, leak in _near(test, tests, train, trains, threshold, compared).items() if row not in exact
    }
    leaks = [(exact | near)[row] for row in sorted(exact | near)]
    total = len(test.reader.index)
    ctx.progress(1.0, f"{len(leaks):,} of {total:,} test rows are in the training version", rows=total)
    return {
        "leakage": {
            "test_rows": total,
            "train_rows": len(train.reader.index),
            "exact_rows": len(exact),
            "near_rows": len(near),
            "leaked_share": len(leaks) / total,
            "examples": _examples(test, train, leaks[:_EXAMPLES]),
            "near_duplicates": near_duplicate_report(_some_texts(test), threshold, choose_banding(threshold)),
            "seconds": time.monotonic() - started,
        }
    }


def _open(ctx: EngineContext, grant: str, version: str, column: str) -> Side:
    return Side(grant, version, column, open_version(ctx.blobs_read(grant), version))


class _Signing:
    """Signs both versions in shards, and tells how far it is over the two of them.

    Args:
        ctx: of the task.
        threshold: Jaccard similarity.
        total: rows of both.
    """

    def __init__(self, ctx: EngineContext, threshold: float, total: int) -> None:
        self._ctx = ctx
        self._threshold = threshold
        self._total = total
        self._done = 0

    def of(self, side: Side, called: str) -> Iterator[Signed]:
        """The shards of a version in order. Raises CONTENT_INVALID at the end if none had a text."""
        count = len(side.reader.index)
        common = (side.grant, side.version, side.column, self._threshold)
        shards = [(*common, start, min(count, start + SHARD_ROWS)) for start in range(0, count, SHARD_ROWS)]

        def local(_grant: str, _version: str, column: str, threshold: float, start: int, stop: int) -> Signed:
            return sign(side.reader, column, threshold, start, stop)

        has_text = False
        for signed in map_shards(sign_shard, shards, local, self._ctx.log):
            self._ctx.stop_if_cancelled()
            has_text = has_text or any(signed.exact)
            self._done += len(signed.rows)
            share = _SIGNED_SHARE * self._done / self._total
            self._ctx.progress(share, f"{self._done:,} of {self._total:,} rows signed", rows=self._done)
            yield signed
        if not has_text:
            problem = f"no row of {called} has text in the column {side.column!r}; nothing was compared"
            raise EngineError("CONTENT_INVALID", problem, detail="no text")


def _joined(shards: list[Signed]) -> Signed:
    return Signed(
        np.concatenate([shard.rows for shard in shards]),
        [digest for shard in shards for digest in shard.exact],
        np.concatenate([shard.sets for shard in shards]),
        np.concatenate([shard.bands for shard in shards], axis=1),
    )


class _Like:
    """Picks the training rows that share a text or a band with a test row."""

    def __init__(self, tests: Signed) -> None:
        self._digests = set(tests.exact) - {b""}
        self._bands = np.sort(tests.bands, axis=1)

    def some_of(self, shard: Signed) -> Signed:
        """Those of a shard."""
        alike = np.array([digest in self._digests for digest in shard.exact], bool)
        for own, wanted in zip(shard.bands, self._bands, strict=True):
            places = np.minimum(np.searchsorted(wanted, own), len(wanted) - 1)
            alike |= (wanted[places] == own) & (shard.sets != 0)
        return shard.select(np.flatnonzero(alike))


def _exact(tests: Signed, trains: Signed) -> dict[int, Alike]:
    """Test row to the first training row with its text."""
    first: dict[bytes, int] = {}
    for row, digest in zip(trains.rows, trains.exact, strict=True):
        first.setdefault(digest, int(row))
    pairs = zip(map(int, tests.rows), tests.exact, strict=True)
    return {row: Alike(row, first[digest], 1.0) for row, digest in pairs if digest and digest in first}


def _near(
    test: Side, tests: Signed, train: Side, trains: Signed, threshold: float, progress: Callable[[float], None]
) -> dict[int, Alike]:
    """Test row to a training row that it is alike to, also where the texts are equal."""
    known = len(trains.rows)

    def texts(numbers: np.ndarray) -> list[str]:
        """By number: first the training rows, behind them the test rows."""
        found = dict(zip(numbers[numbers < known], train.texts(trains.rows[numbers[numbers < known]]), strict=True))
        others = numbers[numbers >= known]
        found |= zip(others, test.texts(tests.rows[others - known]), strict=True)
        return [found[number] for number in numbers]

    sets = np.concatenate([trains.sets, tests.sets])
    bands = np.concatenate([trains.bands, tests.bands], axis=1)
    leaks = find_leaks(sets, bands, np.arange(len(sets)) < known, threshold, texts, progress)
    pairs = [(int(tests.rows[leak.row - known]), int(trains.rows[leak.other]), leak.similarity) for leak in leaks]
    return {row: Alike(row, other, similarity) for row, other, similarity in pairs}


def _some_texts(test: Side) -> list[str]:
    """Some of the test texts, always the same ones of the same version."""
    count = len(test.reader.index)
    return test.texts(np.sort(np.random.default_rng(_SAMPLE_SEED).permutation(count)[:PLANTED]))


def _examples(test: Side, train: Side, leaks: list[Alike]) -> list[dict[str, Any]]:
    test_texts = test.texts(np.array([leak.row for leak in leaks], np.int64))
    train_texts = train.texts(np.array([leak.other for leak in leaks], np.int64))
    return [
        {
            "test_row_id": test.reader.index.id_of(leak.row),
            "train_row_id": train.reader.index.id_of(leak.other),
            "test_text": example_text(test_text),
            "train_text": example_text(train_text),
            "similarity": leak.similarity,
        }
        for leak, test_text, train_text in zip(leaks, test_texts, train_texts, strict=True)
    ]
