"""Why a detector cannot be used on this machine."""

from __future__ import annotations

from pathlib import Path

from libs.common.domain import DomainError


def unusable(why: str) -> DomainError:
    """PREFLIGHT_FAILED."""
    return DomainError("PREFLIGHT_FAILED", f"detector: {why}", check="detector", detail=why)


def require_files(folder: Path, *names: str) -> None:
    """Raises PREFLIGHT_FAILED, naming the files that a folder lacks."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise unusable(f"the folder {folder.name} lacks {', '.join(missing)}")
