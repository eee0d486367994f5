"""Where the files of an outside model come from: uploads, an archive, a folder of this machine, or a hub.

Each gives paths with their bytes; which of them are kept is decided by path alone, before a byte is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from libs.archives.entries import BadEntry, Entry, Limits
from libs.archives.errors import BrokenOff, UnreadableFile
from libs.archives.tar_reader import read_tar
from libs.archives.zip_reader import read_zip
from libs.common.blobs import BlobStore, manifest_digests
from libs.common.domain import DomainError
from libs.common.http.external import ExternalClient
from libs.common.http.external import Limits as AnswerLimits
from libs.common.http.links import Networks, parse_link
from libs.compute.context import EngineContext
from libs.compute.files import joined_file
from services.training.domain.model_files import BadModel, common_folder, fate

Json = dict[str, Any]

_CHUNK = 1 << 20
_MOST_FILES = 10_000
_ZIP, _TAR = (".zip",), (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")
# For one file of a hub: 64 GiB at 10 MB/s.
_HUB_SECONDS = 7200.0
_LISTING = AnswerLimits(64 << 20, 60.0)


@dataclass(frozen=True)
class SourceFile:
    """A file that is kept: its path in the model, its bytes (0: not known), and what reads them."""

    path: str
    size: int
    chunks: Callable[[], Iterator[bytes]]


@dataclass
class Source:
    """What comes from one place.

    Attributes:
        origin: for people and lineage.
        left_out: paths that no model needs.
    """

    origin: str
    files: Iterator[SourceFile]
    total: int
    left_out: list[str]


@contextmanager
def opened(ctx: EngineContext) -> Generator[Source]:
    """The source that the spec names: `uploads`, `folder` or `hub`.

    Raises:
        BadModel: A file must not be in a model, or an archive cannot be trusted.
        DomainError: What comes from outside cannot be had.
    """
    spec = ctx.spec
    if spec.get("uploads"):
        yield from _uploads(ctx, spec["uploads"], spec["max_bytes"])
    elif spec.get("folder"):
        yield _folder(spec["folder"], spec["open_folders"])
    else:
        yield _hub(spec["hub"], spec["max_bytes"])


def _uploads(ctx: EngineContext, uploads: list[Json], max_bytes: int) -> Generator[Source]:
    archives = [upload for upload in uploads if upload["file_name"].lower().endswith((*_ZIP, *_TAR))]
    if not archives:
        yield _single_files(ctx, uploads)
        return
    if len(uploads) > 1:
        raise BadModel(f"{archives[0]['file_name']}: an archive comes alone, not beside other files")
    upload = uploads[0]
    store = ctx.blobs_read(upload["grant"])
    with joined_file(store, manifest_digests(store.load_manifest_sync(upload["manifest"]))) as file:
        yield _archive(file, upload, max_bytes)


def _single_files(ctx: EngineContext, uploads: list[Json]) -> Source:
    left_out: list[str] = []
    kept: list[SourceFile] = []
    for upload in uploads:
        path = upload["file_name"]
        if path in [file.path for file in kept]:
            raise BadModel(f"{path}: it was uploaded twice")
        if fate(path):
            kept.append(SourceFile(path, upload["size"], lambda upload=upload: _pieces(ctx, upload)))
        else:
            left_out.append(path)
    names = ", ".join(upload["name"] for upload in uploads[:3]) + (", ..." if len(uploads) > 3 else "")
    return Source(names, iter(kept), sum(file.size for file in kept), left_out)


def _pieces(ctx: EngineContext, upload: Json) -> Iterator[bytes]:
    store = ctx.blobs_read(upload["grant"])
    for digest in manifest_digests(store.load_manifest_sync(upload["manifest"])):
        yield from store.get_sync(digest)


def _archive(file: BinaryIO, upload: Json, max_bytes: int) -> Source:
    """An archive is read twice: its names tell which folder is the model, and what is refused, before any byte."""
    reader = read_zip if upload["file_name"].lower().endswith(_ZIP) else read_tar
    limits = Limits(entries=_MOST_FILES, entry_bytes=max_bytes, total_bytes=max_bytes)

    def entries() -> Iterator[Entry]:
        try:
            # A handle of its own: what unpacks closes the file that it was given.
            with os.fdopen(os.dup(file.fileno()), "rb") as handle:
                handle.seek(0)
                for entry in reader(handle, limits):
                    if entry.error:
                        raise BadModel(f"{_shown(entry.name)} in {upload['file_name']}: {entry.error}")
                    yield entry
        except (UnreadableFile, BrokenOff) as error:
            raise BadModel(f"{upload['file_name']}: {error}") from error

    names = [entry.name for entry in entries()]
    folder = common_folder(names)
    kept = {name for name in names if fate(name.removeprefix(folder))}

    def files() -> Iterator[SourceFile]:
        for entry in entries():
            if entry.name in kept:
                yield SourceFile(entry.name.removeprefix(folder), 0, lambda entry=entry: _entry(entry))

    return Source(upload["name"], files(), os.fstat(file.fileno()).st_size, [n for n in names if n not in kept])


def _entry(entry: Entry) -> Iterator[bytes]:
    try:
        yield from entry.chunks
    except BadEntry as error:
        raise BadModel(f"{_shown(entry.name)}: {error}") from error


def _folder(folder: str, open_folders: list[str]) -> Source:
    try:
        root = Path(folder).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BadModel(f"{folder}: there is no such folder") from error
    allowed = [Path(each).resolve() for each in open_folders]
    home = next((each for each in allowed if root.is_relative_to(each)), None)
    if home is None or not root.is_dir():
        raise BadModel(f"{folder}: it is no folder inside one that the operator opened for imports")
    paths = sorted(str(path.relative_to(root)) for path in _walk(root))
    kept = [path for path in paths if fate(path)]
    files = [_local(root / path, path, home) for path in kept]
    left_out = [path for path in paths if path not in kept]
    return Source(f"folder {root}", iter(files), sum(file.size for file in files), left_out)


def _walk(root: Path) -> Iterator[Path]:
    count = 0
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            count += 1
            if count > _MOST_FILES:
                raise BadModel(f"{root}: it has more than {_MOST_FILES:,} files")
            yield Path(parent) / name


def _local(path: Path, shown: str, home: Path) -> SourceFile:
    """A file of a folder. A link may lead to another place of the folder that the operator opened, as those of a hub's
    cache do, and nowhere else."""
    target = path.resolve()
    if not target.is_relative_to(home):
        raise BadModel(f"{shown}: it is a link that leads out of the folder")
    if not stat.S_ISREG(os.stat(target).st_mode):
        raise BadModel(f"{shown}: it is no file")
    return SourceFile(shown, target.stat().st_size, lambda: _read(target, shown))


def _read(target: Path, shown: str) -> Iterator[bytes]:
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadModel(f"{shown}: it is no file")
        while chunk := file.read(_CHUNK):
            yield chunk


def _hub(hub: Json, max_bytes: int) -> Source:
    """The files of a model of a hub with the interface of huggingface.co, at one commit."""
    networks = Networks(hub["networks"], "ARGOSY_TRAINING_MODEL_HUB_NETWORKS")
    base = f"{hub['url'].rstrip('/')}"
    said = b"".join(_get(f"{base}/api/models/{hub['id']}/revision/{hub['revision'] or 'main'}", networks, _LISTING))
    try:
        listing = orjson.loads(said)
        commit = str(listing["sha"])
        paths = sorted(str(each["rfilename"]) for each in listing["siblings"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadModel(f"{hub['id']}: the hub does not say which files it has") from error
    # Weights beside these, which other programs read, stay where they are.
    kept = [path for path in paths if _wanted(path)]
    if len(kept) > _MOST_FILES:
        raise BadModel(f"{hub['id']}: has more than {_MOST_FILES:,} files")
    limits = AnswerLimits(max_bytes, _HUB_SECONDS)
    files = (
        SourceFile(path, 0, lambda path=path: _get(f"{base}/{hub['id']}/resolve/{commit}/{path}", networks, limits))
        for path in kept
    )
    return Source(f"{base}/{hub['id']} at {commit}", files, 0, [path for path in paths if path not in kept])


def _wanted(path: str) -> bool:
    try:
        return fate(path)
    except BadModel:
        return False


def _get(address: str, networks: Networks, limits: AnswerLimits) -> Iterator[bytes]:
    with ExternalClient(networks, limits).get(parse_link(address, "hub"), None, "hub") as answer:
        if answer.status == 404:
            raise DomainError("NOT_FOUND", f"{answer.link.address} is not there.", name=answer.link.address)
        if answer.status != 200:
            message = f"{answer.link.address} answers {answer.status}"
            raise DomainError("PEER_UNAVAILABLE", message, service=answer.link.host)
        yield from answer.chunks()


def _shown(name: str) -> str:
    return repr(name[:200])[1:-1]


def small_text(store: BlobStore, path: str, digest: str, size: int, most: int) -> str:
    """A text file of a model.

    Raises:
        BadModel: It is too large, or not UTF-8.
    """
    if size > most:
        raise BadModel(f"{path}: {size:,} bytes, at most {most:,} are read")
    try:
        return store.read_sync(digest).decode()
    except UnicodeDecodeError as error:
        raise BadModel(f"{path}: it is not UTF-8") from error
