"""Where the benchmarks leave what they found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "bench"


def save(report: dict[str, Any]) -> Path:
    """Writes `build/bench/<name>.json`; returns its path within the checkout."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{report['name']}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path.relative_to(ROOT)
