"""Real labelled data, which lies beside a checkout and not in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).parents[2] / "shared" / "data"


def data_folder(path: str) -> Path:
    """A folder of it; the test is skipped where it is missing.

    Args:
        path: such as `eval/gsm8k`.
    """
    folder = Path(os.environ.get("ARGOSY_TEST_DATA", _BESIDE)) / path
    if not folder.is_dir():
        pytest.skip(f"there is no {path}: set ARGOSY_TEST_DATA to a folder that has it")
    return folder
