"""Patterns of reward rules, in the syntax of RE2 (https://github.com/google/re2/wiki/Syntax)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from libs.compute.context import EngineError
from services.training.domain.spec import TrainingSpec


def check_patterns(spec: TrainingSpec) -> None:
    """Raises CONTENT_INVALID for a pattern of a phase that is not in this syntax."""
    for phase in spec.phases:
        for pattern in phase.rollouts.patterns:
            matches(pattern, [""])


def matches(pattern: str, texts: Sequence[str]) -> np.ndarray:
    """Where a pattern is found, bool[n]. RE2 takes linear time, so no pattern of a caller makes a run hang.

    Raises:
        EngineError: CONTENT_INVALID, the pattern is not in the syntax of RE2.
    """
    try:
        given = [pa.array(texts, pa.string())]
        found = pc.call_function("match_substring_regex", given, pc.MatchSubstringOptions(pattern))
    except pa.ArrowInvalid as error:
        message = f"A pattern of the reward rules is not in the syntax of RE2: {error}"
        raise EngineError("CONTENT_INVALID", message, detail=pattern) from error
    return found.to_numpy(zero_copy_only=False)
