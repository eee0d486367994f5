"""Clean: a recipe decides which rows of a version stay; the others are counted with a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from libs.compute.context import EngineContext, EngineError
from libs.compute.versions import VersionIndex, VersionReader
from services.dataset.domain.operators import ROW_SIZE
from services.dataset.engines.access import Scratch, StoreBlobs, granted_version, open_version
from services.dataset.engines.alike import find_repeats
from services.dataset.engines.fitting import fit
from services.dataset.engines.index import save
from services.dataset.engines.minhash import band_hashes, choose_banding, set_hashes
from services.dataset.engines.parts import Blobs
from services.dataset.engines.recall import PLANTED, near_duplicate_report
from services.dataset.engines.recipe import Recipe
from services.dataset.engines.report import RuleTally, example_text, version_result
from services.dataset.engines.rows import MAX_COLUMNS, Row, RowError, canonical, widen, widen_columns
from services.dataset.engines.rules import comparable
from services.dataset.engines.shards import map_shards
from services.dataset.engines.shingles import shingle_hashes
from services.dataset.engines.texts import Change, Source, StoppedAt, Texts
from services.dataset.engines.writing import PartWriter

# Rows of one shard: half a second of work, a few megabytes of text.
SHARD_ROWS = 4096
# Shares of the progress: rules and signatures; the rest is the comparison and the writing.
_RULES_SHARE = 0.7
_SAMPLE_SEED = 0


@dataclass(slots=True)
class Judged:
    """What the steps for single rows say about a shard of n rows. Numbers count from the shard's first row.

    Attributes:
        count: n.
        faults: row to (operator, reason).
        beginnings: row to the beginning of its text.
        examples: operator to the first rows that it changed, before and after.
        changed_by: row to the operators that changed its text.
        rows: row to its changed content, for changed rows without a fault.
        exact: (n, 16) uint8, hash of the comparable text.
        sets: (n,) uint64.
        bands: (bands, n) uint64.
        columns: name to type of what the rows hold without a fault, where the recipe may change types.
        stopped: the row at which a function of the user's failed, and why; the rest is empty then.
    """

    count: int
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)
    beginnings: list[str] = field(default_factory=list)
    examples: dict[str, list[Change]] = field(default_factory=dict)
    changed_by: dict[int, list[str]] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    exact: np.ndarray = field(default_factory=lambda: np.zeros((0, 16), np.uint8))
    sets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    bands: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint64))
    columns: dict[str, str] = field(default_factory=dict)
    stopped: StoppedAt | None = None


def run(ctx: EngineContext) -> dict[str, Any]:
    """Cleans one version.

    The spec names `version` and `grant` (manifest to clean), `text_column` and `recipe` (`language` and `steps`). With
    `sample_rows` the recipe is tried on so many rows: the result is the report alone, and nothing is stored.

    Raises:
        EngineError: CONTENT_INVALID, when no row stays, a step needs a figure that a column does not have, or a
            function or an expression of the user's fails; PREFLIGHT_FAILED, when there is no sandbox for functions.
    """
    started = time.monotonic()
    spec, sample = ctx.spec, ctx.spec.get("sample_rows", 0)
    store = ctx.blobs_read(spec["grant"])
    blobs = StoreBlobs(ctx.blobs_write, store)
    reader = open_version(store, spec["version"], blobs)
    if sample:
        reader = VersionReader(_sample(reader.index, sample), blobs)
    # Before there are shards, so that figures of columns do not depend on them.
    fitted = fit(spec["recipe"], reader, ctx.stop_if_cancelled)
    recipe = Recipe.compile(fitted)
    selection = Selection(reader, Scratch(blobs) if sample else blobs, recipe)
    total = len(reader.index)
    bounds = [(start, min(total, start + SHARD_ROWS)) for start in range(0, total, SHARD_ROWS)]

    def local(_grant: str, _version: str, column: str, _recipe: dict[str, Any], start: int, stop: int) -> Judged:
        return judge(reader, column, recipe, start, stop)

    common = (spec["grant"], spec["version"], spec["text_column"], fitted)
    shards = [(*common, *bound) for bound in bounds]
    for judged in (local(*shard) for shard in shards) if sample else map_shards(judge_shard, shards, local, ctx.log):
        ctx.stop_if_cancelled()
        selection.add(judged)
        share = _RULES_SHARE * selection.seen / total
        ctx.progress(share, f"{selection.seen:,} of {total:,} rows checked", rows=selection.seen)
    ctx.progress(_RULES_SHARE, "Comparing rows that are alike")

    def compared(share: float) -> None:
        ctx.stop_if_cancelled()
        ctx.progress(_RULES_SHARE + (0.95 - _RULES_SHARE) * share)

    selection.drop_near_duplicates(spec["text_column"], compared)
    report = selection.report()
    ctx.progress(0.95, f"{report['rows_out']:,} of {total:,} rows kept", rows=total)
    if sample:
        return {"report": {**report, "seconds": time.monotonic() - started}}
    saved = save(selection.index(), blobs)
    if not saved.row_count:
        raise EngineError("CONTENT_INVALID", "no row is left; the recipe drops them all", detail="no rows")
    ctx.progress(1.0, f"{saved.row_count:,} of {total:,} rows kept", rows=total, bytes=saved.byte_count)
    return version_result(saved, {**report, "seconds": time.monotonic() - started}, selection.new_bytes)


def _sample(index: VersionIndex, rows: int) -> VersionIndex:
    """Some rows in their order, always the same ones of the same version."""
    if rows >= len(index):
        return index
    chosen = np.zeros(len(index), bool)
    chosen[np.random.default_rng(_SAMPLE_SEED).choice(len(index), rows, replace=False)] = True
    return index.select(chosen)


def judge_shard(grant: str, version: str, column: str, recipe: dict[str, Any], start: int, stop: int) -> Judged:
    """`judge` in a Ray worker, which opens the version by its grant."""
    return judge(granted_version(grant, version), column, Recipe.compile(recipe), start, stop)


def judge(reader: VersionReader, column: str, recipe: Recipe, start: int, stop: int) -> Judged:
    """Applies the steps for single rows to rows [start, stop), and computes what the steps for pairs of rows need."""
    numbers = np.arange(start, stop)
    judged = Judged(stop - start)
    source = Source(column, reader.index.columns, lambda some: reader.rows(numbers[np.array(some, np.int64)]))
    try:
        worked = recipe.apply(reader.texts(column, numbers), source)
    except StoppedAt as stopped:
        judged.stopped = stopped
        return judged
    texts = worked.texts
    judged.faults = {at: (fault.operator, fault.reason) for at, fault in worked.faults.items()}
    judged.changed_by, judged.examples = worked.changes, worked.examples
    judged.rows = _changed_rows(reader, column, numbers, worked)
    if recipe.rewrites:
        _widen(judged.columns, worked)
    judged.beginnings = [example_text(text) for text in texts]
    if recipe.exact_duplicates:
        digests = b"".join(blake2b(comparable(text).encode(), digest_size=16).digest() for text in texts)
        judged.exact = np.frombuffer(digests, np.uint8).reshape(-1, 16)
    if recipe.near_threshold is not None:
        hashes, offsets = shingle_hashes(texts)
        judged.sets = set_hashes(hashes, offsets)
        judged.bands = band_hashes(hashes, offsets, choose_banding(recipe.near_threshold))
    return judged


def _changed_rows(reader: VersionReader, column: str, numbers: np.ndarray, worked: Texts) -> dict[int, Row]:
    """What is left of the rows that a step changed."""
    changed = [at for at in sorted(worked.changes) if at not in worked.faults]
    rows = {at: worked.contents[at] for at in changed if at in worked.contents}
    only_text = [at for at in changed if at not in rows]
    for at, row in zip(only_text, reader.rows(numbers[only_text]), strict=True):
        rows[at] = {**row, column: worked.texts[at]}
    return rows


def _widen(columns: dict[str, str], worked: Texts) -> None:
    """Makes `columns` hold all rows that are left. A row that cannot be kept is left out here and told later."""
    for at in worked.left:
        with suppress(RowError):
            widen_columns(columns, canonical(worked.row(at))[0])


class Selection:
    """Which rows stay. Shards are added in order, so exact duplicates and the parts of changed rows do not depend on
    workers."""

    def __init__(self, reader: VersionReader, blobs: Blobs, recipe: Recipe) -> None:
        self._blobs = blobs
        # Reports name rows by their ids in the version that is read.
        self._id_of = reader.index.id_of
        self._recipe = recipe
        self._writer = PartWriter(blobs, reader.index)
        index = reader.index
        # Changed rows get another place; the arrays of the version that is read stay as they are.
        self._index = VersionIndex(
            index.parts,
            index.sources,
            dict(index.columns),
            index.row_ids.copy(),
            index.part.copy(),
            index.slot.copy(),
            index.size.copy(),
            index.source,
            index.position,
            index.media_blobs,
            index.media,
        )
        # Of a recipe that may change types: what the rows hold now.
        self._columns: dict[str, str] = {}
        self._keep = np.ones(len(index), bool)
        self._tally = RuleTally(index, recipe.names)
        self._seen_texts: dict[bytes, int] = {}
        self._sets: list[np.ndarray] = []
        self._bands: list[np.ndarray] = []
        self._near_duplicates: dict[str, Any] | None = None
        self.seen = 0

    @property
    def new_bytes(self) -> int:
        """Bytes of changed rows that the version before did not have."""
        return self._writer.new_bytes

    def add(self, judged: Judged) -> None:
        """Takes over what the steps say about the next rows."""
        first = self.seen
        if judged.stopped is not None:
            raise self._failure(first, judged.stopped)
        self.seen += judged.count
        for names in judged.changed_by.values():
            self._tally.change(names)
        for operator, changes in judged.examples.items():
            self._tally.show_changes(operator, first, changes)
        for at, (rule, reason) in judged.faults.items():
            self._keep[first + at] = False
            self._tally.drop(rule, first + at, reason, judged.beginnings[at])
        if self._recipe.exact_duplicates:
            self._drop_exact(first, judged)
        for at, row in judged.rows.items():
            if self._keep[first + at]:
                self._replace(first + at, row)
        for name, kind in judged.columns.items():
            self._columns[name] = widen(self._columns.get(name, kind), kind)
        self._sets.append(judged.sets)
        self._bands.append(judged.bands)

    def drop_near_duplicates(self, column: str, progress: Callable[[float], None]) -> None:
        """Drops all but the first of each group of near-duplicates among the rows that are left."""
        self._writer.flush()
        self._index.parts = self._writer.parts
        if self._recipe.rewrites:
            self._index.columns = self._rewritten_columns()
        threshold = self._recipe.near_threshold
        if threshold is None or not self.seen:
            return
        rows = np.flatnonzero(self._keep)
        reader = VersionReader(self._index, self._blobs)
        sets, bands = np.concatenate(self._sets)[rows], np.concatenate(self._bands, axis=1)[:, rows]
        self._sets, self._bands = [], []
        some = np.sort(np.random.default_rng(_SAMPLE_SEED).permutation(rows)[:PLANTED])
        banding = choose_banding(threshold)
        self._near_duplicates = near_duplicate_report(reader.texts(column, some), threshold, banding)
        repeats = find_repeats(sets, bands, threshold, lambda some: reader.texts(column, rows[some]), progress)
        for repeat in repeats:
            row, first = int(rows[repeat.row]), int(rows[repeat.other])
            self._keep[row] = False
            reason = f"similarity {repeat.similarity:.2f}, group of row {self._id_of(first)}"
            text = ""
            if self._tally.wants_example("near_duplicates"):
                text = example_text(reader.texts(column, np.array([row]))[0])
            self._tally.drop("near_duplicates", row, reason, text)

    def index(self) -> VersionIndex:
        """The rows that stay."""
        return self._index.select(self._keep)

    def report(self) -> dict[str, Any]:
        """Fields of `argosy.dataset.v1.Report`."""
        report = {
            "rows_in": self.seen,
            "rows_out": int(self._keep.sum()),
            "rules": [{**rule, **self._recipe.facts.get(rule["rule"], {})} for rule in self._tally.rules()],
            "changed": self._tally.changed,
        }
        if self._near_duplicates is not None:
            report["near_duplicates"] = self._near_duplicates
        return report

    def _failure(self, first: int, stopped: StoppedAt) -> EngineError:
        """Why the task fails: the step, the row, and where that came from."""
        if stopped.is_setup:
            problem = f"{stopped.operator}: {stopped.reason}"
            return EngineError("PREFLIGHT_FAILED", problem, check="sandbox", detail=stopped.reason)
        row, index = first + stopped.at, self._index
        place = f"{index.sources[index.source[row]]}, position {index.position[row]}"
        problem = f"{stopped.operator} fails at row {self._id_of(row)} ({place}): {stopped.reason}"
        return EngineError("CONTENT_INVALID", problem, detail="a step failed")

    def _rewritten_columns(self) -> dict[str, str]:
        """Columns in the order of the version, new ones behind them. Raises CONTENT_INVALID for too many."""
        if len(self._columns) > MAX_COLUMNS:
            raise EngineError("CONTENT_INVALID", f"the recipe makes more than {MAX_COLUMNS} columns", detail="columns")
        names = [*(name for name in self._index.columns if name in self._columns), *self._columns]
        return {name: self._columns[name] for name in names}

    def _drop_exact(self, first: int, judged: Judged) -> None:
        for at in range(judged.count):
            if not self._keep[first + at]:
                continue
            digest = judged.exact[at].tobytes()
            earlier = self._seen_texts.setdefault(digest, first + at)
            if earlier != first + at:
                self._keep[first + at] = False
                reason = f"same text as row {self._id_of(earlier)}"
                self._tally.drop("exact_duplicates", first + at, reason, judged.beginnings[at])

    def _replace(self, row: int, content: Row) -> None:
        try:
            plain, data = canonical(content)
        except RowError as error:
            # NFC takes some characters apart, so a row of nearly the largest size can grow beyond it.
            self._keep[row] = False
            self._tally.drop(ROW_SIZE, row, str(error), "")
            return
        if not self._recipe.rewrites:
            widen_columns(self._index.columns, plain)
        place = self._writer.stage(plain, data)
        self._index.row_ids[row] = np.frombuffer(place.row_id, np.uint8)
        self._index.part[row], self._index.slot[row], self._index.size[row] = place.part, place.slot, place.size
