"""Real text that every machine has after installation: the documentation inside the Python environment.

Docstrings of the standard library and of the installed packages, and the language reference of `pydoc_data.topics`.
Source files are parsed, never imported. Files come in the order of a hash of their paths and rows in the order of their
lines, so that the same environment gives the same rows, and the first rows are a fair sample of all.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import itertools
import json
import multiprocessing
import os
import platform
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

# Raised when the rows of the same files would come out differently.
_REVISION = 3
# Folders without documentation of their own: tests, and copies of other packages.
_SKIPPED = {
    "tests",
    "test",
    "testing",
    "_vendor",
    "vendor",
    "third_party",
    "thirdparty",
    "site-packages",
    "__pycache__",
}
# A larger file is generated: tables and fixtures.
_MAX_FILE_BYTES = 1_000_000
# Shorter ones say nothing about where they come from; longer ones are cut to what a model of this size can read anyway.
_MIN_CHARS, _MAX_CHARS = 40, 4000
# No file gives more, so that a few long ones do not decide what a small sample, or one side of a split, looks like.
_MAX_ROWS_A_FILE = 25
# Files that one worker gets at a time.
_CHUNK = 64
# Name of the standard library among the packages.
STANDARD_LIBRARY = "python"
_TOPICS = "pydoc_data/topics.py#"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Corpus:
    """What was built.

    Attributes:
        path: JSONL; a row is `{text, package, module, object, source, line}`.
        rows: how many.
        digest: SHA-256 of the file, in hexadecimal.
        files: source files that gave a row.
        packages: the most frequent packages, most frequent first: name, version, rows.
        seconds: that it took, when it was built.
        cached: whether it was there already.
    """

    path: str
    rows: int
    digest: str
    files: int
    packages: list[tuple[str, str, int]]
    seconds: float
    cached: bool = False

    @property
    def labels(self) -> list[str]:
        """Names of the packages."""
        return [name for name, _version, _rows in self.packages]


def build(folder: Path, rows: int, packages: int, progress: Progress | None = None, only: Sequence[str] = ()) -> Corpus:
    """Writes the corpus, or finds the one that the same environment gave before.

    Args:
        folder: where it goes.
        rows: how many at most.
        packages: how many of the most frequent ones to name.
        progress: gets rows found and rows wanted.
        only: take the same number of rows of each of these packages; empty: all packages, as many as they have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    versions = _versions()
    key = hashlib.sha256(
        json.dumps([_REVISION, rows, packages, list(only), versions], sort_keys=True).encode()
    ).hexdigest()[:16]
    path, about = folder / f"corpus-{key}.jsonl", folder / f"corpus-{key}.json"
    if path.exists() and about.exists():
        known: dict[str, Any] = json.loads(about.read_text())
        return Corpus(**known | {"cached": True})
    began = time.monotonic()
    count, files, labels, digest = _write(path, itertools.islice(_rows(rows, only), rows), rows, progress)
    chosen = [(name, versions.get(name, ""), number) for name, number in labels.most_common(packages)]
    corpus = Corpus(str(path), count, digest, files, chosen, round(time.monotonic() - began, 2))
    draft = about.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(asdict(corpus)))
    draft.replace(about)
    return corpus


def _write(
    path: Path, rows: Iterable[dict[str, object]], wanted: int, progress: Progress | None
) -> tuple[int, int, Counter[str], str]:
    digest, labels, files, count = hashlib.sha256(), Counter[str](), set[object](), 0
    draft = path.with_suffix(f".{os.getpid()}")
    with draft.open("wb") as target:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            target.write(line)
            digest.update(line)
            labels[str(row["package"])] += 1
            files.add(row["source"])
            count += 1
            if progress and count % 500 == 0:
                progress(count, wanted)
    draft.replace(path)
    return count, len(files), labels, digest.hexdigest()


def _rows(rows: int, only: Sequence[str]) -> Iterator[dict[str, object]]:
    left = dict.fromkeys(only, rows // max(1, len(only)))
    wanted = (file for file in (*source_files(), *_topics()) if not only or file[2] in left)
    files = sorted(wanted, key=lambda file: hashlib.sha256(file[1].encode()).digest())
    # Spawned, because a fork of a process that has used gRPC hangs.
    pool = ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))
    try:
        for found in pool.map(_parse, files, chunksize=_CHUNK):
            for row in found[:_MAX_ROWS_A_FILE]:
                package = str(row["package"])
                if not only:
                    yield row
                elif left[package]:
                    left[package] -= 1
                    yield row
    finally:
        # Nobody reads on once there are rows enough. (`multiprocessing.Pool` may hang for ever when it is ended early.)
        pool.shutdown(cancel_futures=True)


def source_files() -> Iterator[tuple[str, str, str]]:
    """Every source file: its path, its path below the library folder, and the package that it belongs to."""
    paths = sysconfig.get_paths()
    site, standard = Path(paths["purelib"]), Path(paths["stdlib"])
    for entry in sorted(site.iterdir()):
        if entry.is_dir() and (entry / "__init__.py").exists() and entry.name not in _SKIPPED:
            yield from _below(entry, site, entry.name)
    for entry in sorted(standard.iterdir()):
        if entry.suffix == ".py":
            yield str(entry), entry.name, STANDARD_LIBRARY
        elif (entry / "__init__.py").exists() and entry.name not in _SKIPPED:
            yield from _below(entry, standard, STANDARD_LIBRARY)


def _below(folder: Path, root: Path, package: str) -> Iterator[tuple[str, str, str]]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(place) / name
            if name.endswith(".py") and path.stat().st_size <= _MAX_FILE_BYTES:
                yield str(path), str(path.relative_to(root)), package


def _parse(file: tuple[str, str, str]) -> list[dict[str, object]]:
    """The docstrings of one file, by line."""
    path, source, package = file
    if source.startswith(_TOPICS):
        return _topic(source)
    try:
        text = Path(path).read_text(encoding="utf-8")
        if '"""' not in text and "'''" not in text:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
        return []
    module = source.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    found = []
    for name, node in _documented(tree, ""):
        docstring = _docstring(node)
        if docstring:
            line = node.body[0].lineno
            found.append(
                {
                    "text": docstring,
                    "package": package,
                    "module": module,
                    "object": name,
                    "source": source,
                    "line": line,
                }
            )
    return sorted(found, key=lambda row: (int(str(row["line"])), str(row["object"])))


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Documented]]:
    if isinstance(node, ast.Module):
        yield "", node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}{child.name}"
            yield name, child
            yield from _documented(child, f"{name}.")


def _docstring(node: _Documented) -> str:
    first = node.body[0] if node.body else None
    if (
        not isinstance(first, ast.Expr)
        or not isinstance(first.value, ast.Constant)
        or not isinstance(first.value.value, str)
    ):
        return ""
    return _clean(first.value.value)


def _clean(text: str) -> str:
    """A docstring without its indentation; empty when it is too short to learn from."""
    cleaned = inspect.cleandoc(text.encode("utf-8", "ignore").decode().replace("\0", "")).strip()
    return cleaned[:_MAX_CHARS] if len(cleaned) >= _MIN_CHARS else ""


def _topics() -> Iterator[tuple[str, str, str]]:
    """The topics of the language reference, as if each were a file."""
    for topic in sorted(topics):
        yield "", f"{_TOPICS}{topic}", STANDARD_LIBRARY


def _topic(source: str) -> list[dict[str, object]]:
    """A topic: some paragraphs a row, because a topic is pages long."""
    topic = source.removeprefix(_TOPICS)
    return [
        {
            "text": part,
            "package": STANDARD_LIBRARY,
            "module": "pydoc_data.topics",
            "object": topic,
            "source": source,
            "line": number + 1,
        }
        for number, part in enumerate(_paragraphs(topics[topic]))
    ]


def _paragraphs(text: str) -> Iterator[str]:
    """Parts of about 1,000 characters, cut between paragraphs."""
    held = ""
    for paragraph in text.split("\n\n"):
        if held and len(held) + len(paragraph) > 1000:
            if cleaned := _clean(held):
                yield cleaned
            held = ""
        held += paragraph + "\n\n"
    if cleaned := _clean(held):
        yield cleaned


def _versions() -> dict[str, str]:
    """Version of every import package; that of Python for the standard library."""
    found = {STANDARD_LIBRARY: platform.python_version()}
    for name, owners in sorted(packages_distributions().items()):
        found[name] = version(owners[0])
    return found
