"""Writes THIRD_PARTY.md: every locked package with its licence, as its own metadata states it.

python -m deploy.local.notices            # write
python -m deploy.local.notices --check    # fail when the file is not what the lock gives
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
LOCKS = (ROOT / "requirements" / "lock.txt", ROOT / "requirements" / "llm.txt")
TARGET = ROOT / "THIRD_PARTY.md"
_HEAD = """# Third-party packages

Argosy is licensed under the Apache License 2.0 and does not contain the packages below; `make setup` installs them,
each under its own licence, whose text comes with it. Written by `make notices` from `requirements/` and the metadata of
the installed packages.

| package | version | licence |
|---|---|---|
"""
# What the wheels of a package carry under another licence, which its metadata does not say.
_CARRIED = {
    "av": "; its wheels carry FFmpeg with x264 and x265, as a whole GPL-3.0-or-later",
}


def locked() -> list[tuple[str, str]]:
    """Name and version of every locked package."""
    found = {}
    for lock in LOCKS:
        for name, version in re.findall(
            r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", lock.read_text(), re.MULTILINE
        ):
            found[name.lower()] = version
    return sorted(found.items())


def licence(package: str) -> str:
    """The licence that a package states: its SPDX expression, else its classifiers, else the first line of its
    field.
    """
    try:
        about: Any = metadata(package)
    except PackageNotFoundError:
        return "not installed on the machine that wrote this"
    expression = about.get("License-Expression")
    if expression:
        return str(expression)
    classifiers = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    if classifiers:
        return ", ".join(sorted(set(classifiers)))
    first = str(about.get("License") or "").strip().splitlines()
    return first[0][:80] if first else "see the package"


def render() -> str:
    """The whole file."""
    lines = [f"| {name} | {version} | {licence(name)}{_CARRIED.get(name, '')} |\n" for name, version in locked()]
    return _HEAD + "".join(lines)


def main() -> None:
    """Command line."""
    text = render()
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text() != text:
            sys.exit("THIRD_PARTY.md is not what the lock gives: run `make notices`")
        return
    TARGET.write_text(text)


if __name__ == "__main__":
    main()
