"""Own code of algorithms: the files of a script or package, what may be in them, and what a run of them may use."""

from __future__ import annotations

import ast
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from libs.common.domain import DomainError
from services.training.domain import schemas
from services.training.domain.spec import invalid

Json = dict[str, Any]

MOST_FILES = 100
MOST_BYTES = 2 << 20
_MAIN = "main.py"
_TASK = "custom"
_DAY = 86_400
_GIB = 1 << 30
# An interpreter with torch needs a third of it.
_LEAST_MEMORY = 512 << 20
_LEAST_DISK = 1 << 20
# No part begins with a dot, so none is `..`.
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,7}")
# Longest path.
_LONGEST = 200


@dataclass(frozen=True)
class CodeFile:
    """A file by its path: SHA-256 and bytes of its content."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Limits:
    """What a run may use; 0: the default.

    Attributes:
        max_seconds: of wall time, an attempt.
        max_memory_bytes: of its own.
        max_disk_bytes: of what it writes and does not remove.
    """

    max_seconds: int = 0
    max_memory_bytes: int = 0
    max_disk_bytes: int = 0

    def filled(self) -> Limits:
        """With the defaults."""
        return Limits(self.max_seconds or _DAY, self.max_memory_bytes or 4 * _GIB, self.max_disk_bytes or 4 * _GIB)

    def check(self, where: str) -> None:
        """Raises INVALID_FIELD for less than anything could run with."""
        for name, least in (("max_memory_bytes", _LEAST_MEMORY), ("max_disk_bytes", _LEAST_DISK)):
            if 0 < getattr(self, name) < least:
                raise invalid(f"{where}.{name}", f"must be at least {least:,}, or 0 for the default")


@dataclass(frozen=True)
class Program:
    """The code of an algorithm, in a draft or in a version.

    Attributes:
        task: for people.
        entry: the script that a run starts.
        without_data: whether it reads no dataset version.
        parameters: schema of what a training may set.
        files: by path.
        digest: of the manifest of the files; empty: there are none.
    """

    task: str = ""
    entry: str = ""
    without_data: bool = False
    parameters: Json = field(default_factory=dict[str, Any])
    limits: Limits = field(default_factory=Limits)
    files: tuple[CodeFile, ...] = ()
    digest: str = ""

    def file(self, path: str, owner: str) -> CodeFile:
        """One of the files. Raises NOT_FOUND, naming the path."""
        found = next((file for file in self.files if file.path == path), None)
        if found is None:
            raise DomainError("NOT_FOUND", f"{owner} has no file {path}.", name=f"{owner}/{path}")
        return found

    def with_file(self, file: CodeFile) -> Program:
        """With a file, new or in place of the one of its path.

        Raises:
            DomainError: INVALID_FIELD for a path; TOO_LARGE for too many files, or too much in them.
        """
        if len(file.path) > _LONGEST or not _PATH.fullmatch(file.path):
            raise invalid("path", "must be relative, of letters, digits, `_`, `-` and `.`, which no part begins with")
        others = [other for other in self.files if other.path != file.path]
        for other in others:
            if other.path.startswith(f"{file.path}/") or file.path.startswith(f"{other.path}/"):
                raise invalid("path", f"would make a folder of a file: there is {other.path}")
        files = tuple(sorted([*others, file], key=lambda one: one.path))
        if len(files) > MOST_FILES:
            raise DomainError("TOO_LARGE", f"A draft has at most {MOST_FILES} files.", limit=str(MOST_FILES))
        if sum(one.size for one in files) > MOST_BYTES:
            message = f"The files of a draft have at most {MOST_BYTES:,} bytes together."
            raise DomainError("TOO_LARGE", message, limit=str(MOST_BYTES))
        return replace(self, files=files)

    def without_file(self, path: str, owner: str) -> Program:
        """Without one of the files. Raises NOT_FOUND."""
        gone = self.file(path, owner)
        return replace(self, files=tuple(file for file in self.files if file != gone))

    def published(self) -> Program:
        """As a version keeps it, defaults filled in.

        Raises:
            DomainError: INVALID_FIELD for a script that is not there, a schema or limits that are not in order.
        """
        where = "algorithm_draft"
        made = replace(
            self,
            task=self.task or _TASK,
            entry=self.entry or _MAIN,
            parameters=self.parameters or schemas.EMPTY,
            limits=self.limits.filled(),
        )
        if not made.entry.endswith(".py") or all(file.path != made.entry for file in made.files):
            have = ", ".join(file.path for file in made.files)[:300] or "none"
            raise invalid(f"{where}.entry_file", f"must be a Python file of the draft; there are: {have}")
        schemas.check_schema(made.parameters, f"{where}.parameters")
        made.limits.check(f"{where}.limits")
        return made

    def to_json(self) -> Json:
        """For the row."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Program:
        """What `to_json` gave, or an empty one."""
        if not data:
            return cls()
        made = cls(**data)
        return replace(made, files=tuple(CodeFile(**file) for file in data["files"]), limits=Limits(**data["limits"]))


def python_fault(source: str) -> str:
    """What keeps Python from running, with the line; empty: nothing does."""
    try:
        ast.parse(source)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, MemoryError, RecursionError):
        return "is no Python that can be read"
    return ""
