"""Files read as engines read them."""

from __future__ import annotations

import io
from typing import Any

from services.dataset.engines.formats import read_lines


def values(data: bytes, format_name: str) -> list[Any]:
    """Each row, or why there is none."""
    return [line.row if line.row is not None else line.error for line in read_lines(io.BytesIO(data), format_name)]
