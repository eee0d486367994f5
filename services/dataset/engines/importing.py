"""Import: a file of rows becomes a version."""

from __future__ import annotations

import io
import time
from typing import Any, BinaryIO

from libs.common.blobs import BlobStore, Json
from libs.compute.context import EngineContext, EngineError
from libs.compute.versions import load_index
from services.dataset.domain.formats import ARCHIVES
from services.dataset.engines.access import StoreBlobs, joined_file
from services.dataset.engines.formats import read_lines
from services.dataset.engines.index import save
from services.dataset.engines.intake import Intake
from services.dataset.engines.lines import UnreadableFile
from services.dataset.engines.media_import import import_archive
from services.dataset.engines.report import version_result
from services.dataset.engines.sharded_import import SHARDED, import_shards
from services.dataset.engines.unpacking import codec_of
from services.dataset.engines.writing import VersionWriter

# A file of at most so many bytes is read by this process alone.
_WHOLE_BYTES = 64 * 1024 * 1024
# Lines between two looks at the clock.
_STRIDE = 1000
_REPORT_SECONDS = 0.5


def run(ctx: EngineContext) -> dict[str, Any]:
    """Imports one file.

    The spec names `upload` and `upload_grant` (manifest of the file's pieces), `file_name`, `format`, and, when the
    dataset has a version, `base` and `base_grant`, whose rows are referenced instead of stored again. With an archive,
    `media_type` says what its files must be.

    Raises:
        EngineError: CONTENT_INVALID, when no row at all can be read.
    """
    started = time.monotonic()
    spec = ctx.spec
    uploads = ctx.blobs_read(spec["upload_grant"])
    reads = [ctx.blobs_read(spec["base_grant"])] if spec.get("base") else []
    blobs = StoreBlobs(ctx.blobs_write, *reads)
    known = load_index(reads[0].load_manifest_sync(spec["base"]), blobs) if reads else None
    manifest = uploads.load_manifest_sync(spec["upload"])
    ctx.progress(0.0, f"Fetching {spec['file_name']}")
    if _comes_in_shards(uploads, manifest, spec["format"]):
        index, report, new_bytes = import_shards(ctx, StoreBlobs(None, uploads), manifest, known, blobs)
    else:
        with joined_file(uploads, manifest) as file:
            writer = VersionWriter(blobs, known)
            if spec["format"] in ARCHIVES:
                report = import_archive(ctx, file, writer, ctx.blobs_write)
            else:
                report = import_file(ctx, file, writer)
            index, new_bytes = writer.finish(), writer.new_bytes
    if not len(index):
        raise _nothing(spec["file_name"], report["line_errors"])
    saved = save(index, blobs)
    report["seconds"] = time.monotonic() - started
    ctx.progress(1.0, f"{len(index):,} rows imported", rows=len(index), bytes=saved.byte_count)
    return version_result(saved, report, new_bytes)


def _comes_in_shards(store: BlobStore, manifest: Json, format_name: str) -> bool:
    """Whether a file is so large that workers are worth their start, and can be read from its middle."""
    if format_name not in SHARDED or sum(piece["size"] for piece in manifest["blobs"]) <= _WHOLE_BYTES:
        return False
    return codec_of(store.read_sync(manifest["blobs"][0]["sha256"])[:4]) is None


def _nothing(file_name: str, errors: list[dict[str, Any]]) -> EngineError:
    first = f"; line {errors[0]['line']}: {errors[0]['error']}" if errors else ""
    return EngineError("CONTENT_INVALID", f"{file_name} has no readable row{first}", detail="no rows")


def import_file(ctx: EngineContext, file: BinaryIO, writer: VersionWriter) -> dict[str, Any]:
    """Adds every readable row of `file` to `writer` and returns the report (fields of `argosy.dataset.v1.Report`)."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    intake = Intake(writer, ctx.spec["file_name"])
    reported = time.monotonic()
    try:
        for line in read_lines(file, ctx.spec["format"]):
            intake.add(line, line.number)
            if intake.seen % _STRIDE == 0 and time.monotonic() - reported > _REPORT_SECONDS:
                reported = time.monotonic()
                ctx.stop_if_cancelled()
                ctx.progress(0.95 * _share(file, size), f"{len(writer):,} rows read", rows=len(writer))
    except UnreadableFile as error:
        raise EngineError("CONTENT_INVALID", f"{ctx.spec['file_name']}: {error}", detail=str(error)) from error
    return intake.report()


def _share(file: BinaryIO, size: int) -> float:
    """How much of the file has been read; a Parquet reader jumps, so never more than all of it."""
    return min(1.0, file.tell() / size) if size else 1.0
