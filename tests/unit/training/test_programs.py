"""Own code of algorithms: what a draft may hold, and what is published."""

from __future__ import annotations

import pytest

from libs.common.domain import DomainError
from services.training.domain.programs import MOST_BYTES, CodeFile, Limits, Program, python_fault


def file(path: str, size: int = 1) -> CodeFile:
    return CodeFile(path, "0" * 64, size)


def test_files_are_in_order_and_replaced_by_path() -> None:
    program = Program().with_file(file("b.py")).with_file(file("a/c.py")).with_file(file("b.py", 2))
    assert program.files == (file("a/c.py"), file("b.py", 2))
    assert program.without_file("b.py", "draft").files == (file("a/c.py"),)
    assert Program.from_json(program.to_json()) == program


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "../a", "a/../b", ".a", "a/.b", "a b", "a\\b", "é", "a" * 201, "a/" * 9 + "a"]
)
def test_a_path_stays_below_the_folder(path: str) -> None:
    with pytest.raises(DomainError, match="path must be relative"):
        Program().with_file(file(path))


def test_a_program_has_bounds() -> None:
    full = Program(files=tuple(file(f"f{number:03}") for number in range(100)))
    with pytest.raises(DomainError, match="at most 100 files"):
        full.with_file(file("one-more"))
    with pytest.raises(DomainError, match="2,097,152 bytes"):
        Program().with_file(file("a", MOST_BYTES)).with_file(file("b"))


def test_what_is_published_is_complete() -> None:
    made = Program().with_file(file("main.py")).published()
    assert (made.task, made.entry, made.parameters["properties"]) == ("custom", "main.py", {})
    assert made.limits == Limits(86_400, 4 << 30, 4 << 30)
    with pytest.raises(DomainError, match="entry_file must be a Python file of the draft"):
        Program(entry="notes.txt").with_file(file("notes.txt")).published()
    with pytest.raises(DomainError, match=r"limits.max_disk_bytes must be at least 1,048,576"):
        Program(limits=Limits(max_disk_bytes=5)).with_file(file("main.py")).published()


@pytest.mark.parametrize("source", ["x = (", "def f():\nreturn 1", "\x00", "(" * 10_000])
def test_python_that_cannot_run_is_named(source: str) -> None:
    assert python_fault(source).startswith(("line ", "is no Python"))
