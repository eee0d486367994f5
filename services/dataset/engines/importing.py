"""Import: a file of rows, or the answer of a database, becomes a version."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from libs.archives.errors import UnreadableFile
from libs.archives.unpacking import codec_of
from libs.common.blobs import BlobStore, Json, manifest_digests
from libs.compute.context import EngineContext, EngineError
from libs.compute.files import joined_file
from libs.compute.versions import VersionIndex, load_index
from services.dataset.domain.formats import ARCHIVES
from services.dataset.engines.access import StoreBlobs
from services.dataset.engines.formats import read_lines
from services.dataset.engines.index import save
from services.dataset.engines.intake import Intake
from services.dataset.engines.lines import Line
from services.dataset.engines.media_import import import_archive
from services.dataset.engines.number_texts import Number, number_columns, with_numbers
from services.dataset.engines.report import version_result
from services.dataset.engines.sharded_import import SHARDED, import_shards
from services.dataset.engines.writing import VersionWriter

if TYPE_CHECKING:
    from services.dataset.engines.databases import Query

# A file of at most so many bytes is read by this process alone.
_WHOLE_BYTES = 64 * 1024 * 1024
# Formats without numbers.
_TEXTS_ONLY = frozenset({"csv", "tsv"})
# Lines between two looks at the clock.
_STRIDE = 1000
_REPORT_SECONDS = 0.5
# Of the work; the rest is writing the index.
_READ_SHARE = 0.95


def run(ctx: EngineContext) -> dict[str, Any]:
    """Imports one file, or the rows of one query.

    The spec names `upload` and `upload_grant` (manifest of the file's pieces), `file_name`, `format`, and, when the
    dataset has a version, `base` and `base_grant`, whose rows are referenced instead of stored again. Instead of an
    upload it may have what `outside.open_source` takes. The result then has an `origin`: address and digest. With an
    archive, `media_type` says what its files must be. With `is_table`, columns of numbers become numbers where a format
    has only texts.

    Raises:
        EngineError: CONTENT_INVALID, when no row at all can be read.
        DomainError: What comes from outside cannot be had; see `outside`.
    """
    started = time.monotonic()
    spec = ctx.spec
    reads = [ctx.blobs_read(spec["base_grant"])] if spec.get("base") else []
    blobs = StoreBlobs(ctx.blobs_write, *reads)
    known = load_index(reads[0].load_manifest_sync(spec["base"]), blobs) if reads else None
    if "upload" in spec:
        imported = _import_upload(ctx, known, blobs)
    else:
        imported = _import_outside(ctx, VersionWriter(blobs, known))
    if not len(imported.index):
        raise _nothing(imported.name, imported.report["line_errors"])
    saved = save(imported.index, blobs)
    imported.report["seconds"] = time.monotonic() - started
    ctx.progress(1.0, f"{len(imported.index):,} rows imported", rows=len(imported.index), bytes=saved.byte_count)
    result = version_result(saved, imported.report, imported.new_bytes)
    if imported.address:
        result["origin"] = {"address": imported.address, "digest": imported.digest or saved.content_digest}
    return result


@dataclass(frozen=True, slots=True)
class _Imported:
    """Rows, not yet saved.

    Attributes:
        name: Of the file or the database, for people.
        new_bytes: Of rows that the base version does not have.
        address: Where they come from outside; empty for an upload.
        digest: SHA-256 of the file from outside.
    """

    index: VersionIndex
    report: dict[str, Any]
    new_bytes: int
    name: str
    address: str = ""
    digest: str = ""


def _import_upload(ctx: EngineContext, known: VersionIndex | None, blobs: StoreBlobs) -> _Imported:
    spec = ctx.spec
    uploads = ctx.blobs_read(spec["upload_grant"])
    manifest = uploads.load_manifest_sync(spec["upload"])
    ctx.progress(0.0, f"Fetching {spec['file_name']}")
    if _comes_in_shards(uploads, manifest, spec["format"]):
        return _Imported(*import_shards(ctx, StoreBlobs(None, uploads), manifest, known, blobs), spec["file_name"])
    writer = VersionWriter(blobs, known)
    with joined_file(uploads, manifest_digests(manifest)) as file:
        report = _read(ctx, file, writer, spec["file_name"], spec["format"])
    return _Imported(writer.finish(), report, writer.new_bytes, spec["file_name"])


def _import_outside(ctx: EngineContext, writer: VersionWriter) -> _Imported:
    # Drivers of databases, HTTP and gRPC: half a second that uploads need not wait for.
    from services.dataset.engines.databases import Query
    from services.dataset.engines.fetching import FETCHED_SHARE, fetch
    from services.dataset.engines.outside import open_source

    source = open_source(ctx)
    if isinstance(source, Query):
        report = _import_query(ctx, source, writer)
        return _Imported(writer.finish(), report, writer.new_bytes, source.address, source.address)
    fetched = fetch(ctx, source)
    format_name = ctx.spec["format"] or fetched.format_name()
    digests = [piece["sha256"] for piece in fetched.pieces]
    with joined_file(ctx.blobs_write, digests) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        report = _read(ctx, file, writer, fetched.file_name, format_name, FETCHED_SHARE)
    return _Imported(writer.finish(), report, writer.new_bytes, fetched.file_name, source.address, digest)


def _import_query(ctx: EngineContext, query: Query, writer: VersionWriter) -> dict[str, Any]:
    intake = Intake(writer, query.address)
    reported = time.monotonic()
    with closing(query.rows()) as lines:
        for line in lines:
            intake.add(line, line.number)
            if time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                ctx.stop_if_cancelled()
                # Nobody knows how many rows there will be.
                ctx.progress(0.0, f"{len(writer):,} rows read", rows=len(writer))
    return intake.report()


def _read(
    ctx: EngineContext, file: BinaryIO, writer: VersionWriter, file_name: str, format_name: str, begin: float = 0.0
) -> dict[str, Any]:
    if format_name in ARCHIVES:
        return import_archive(ctx, file, writer, file_name, format_name)
    return import_file(ctx, file, writer, file_name, format_name, begin)


def _comes_in_shards(store: BlobStore, manifest: Json, format_name: str) -> bool:
    """Whether a file is so large that workers are worth their start, and can be read from its middle."""
    if format_name not in SHARDED or sum(piece["size"] for piece in manifest["blobs"]) <= _WHOLE_BYTES:
        return False
    return codec_of(store.read_sync(manifest["blobs"][0]["sha256"])[:4]) is None


def _nothing(file_name: str, errors: list[dict[str, Any]]) -> EngineError:
    first = f"; line {errors[0]['line']}: {errors[0]['error']}" if errors else ""
    return EngineError("CONTENT_INVALID", f"{file_name} has no readable row{first}", detail="no rows")


def import_file(
    ctx: EngineContext, file: BinaryIO, writer: VersionWriter, file_name: str, format_name: str, begin: float = 0.0
) -> dict[str, Any]:
    """Adds every readable row of a file to a version.

    Args:
        file: Binary and seekable.
        file_name: Source of rows that name none.
        format_name: One of `services.dataset.domain.formats.FORMATS`.
        begin: Share of the task's work that is done already.

    Returns:
        Fields of `argosy.dataset.v1.Report`.

    Raises:
        EngineError: CONTENT_INVALID, the file is not of its format.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    intake = Intake(writer, file_name)
    reported = time.monotonic()
    try:
        numbers: dict[str, Number] = {}
        if ctx.spec.get("is_table") and format_name in _TEXTS_ONLY:
            ctx.progress(begin, "Looking which columns are numbers")
            numbers = number_columns(_heard(ctx, read_lines(file, format_name)))
            file.seek(0)
        for line in read_lines(file, format_name):
            intake.add(with_numbers(line, numbers) if numbers else line, line.number)
            if intake.seen % _STRIDE == 0 and time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                ctx.stop_if_cancelled()
                done = begin + (_READ_SHARE - begin) * _share(file, size)
                ctx.progress(done, f"{len(writer):,} rows read", rows=len(writer))
    except UnreadableFile as error:
        raise EngineError("CONTENT_INVALID", f"{file_name}: {error}", detail=str(error)) from error
    return intake.report()


def _heard(ctx: EngineContext, lines: Iterable[Line]) -> Iterator[Line]:
    """The lines, as long as nobody cancels the task."""
    for number, line in enumerate(lines):
        if number % _STRIDE == 0:
            ctx.stop_if_cancelled()
        yield line


def _share(file: BinaryIO, size: int) -> float:
    """How much of the file has been read; a Parquet reader jumps, so never more than all of it."""
    return min(1.0, file.tell() / size) if size else 1.0
