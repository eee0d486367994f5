"""The rows of an evaluation, read by grant."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from libs.compute.context import EngineContext, EngineError
from libs.compute.versions import read_rows


@dataclass(frozen=True, slots=True)
class Question:
    """One row: what is asked, and the right answer."""

    row_id: str
    text: str
    answer: str


def questions(
    ctx: EngineContext, version: dict[str, Any], text_column: str, answer_column: str, answers: Sequence[str]
) -> list[Question]:
    """The rows that have a text and a wanted answer, in the order of the version.

    Args:
        version: `{name, manifest, grant}` as the task loaded it.
        answers: only these; empty: any.

    Raises:
        EngineError: INVALID_FIELD when a column is not there.
    """
    wanted = set(answers)
    found: list[Question] = []
    for batch in read_rows(ctx.blobs_read(version["grant"]), version["manifest"], [text_column, answer_column]):
        for field, column in (("spec.text_column", text_column), ("spec.answer_column", answer_column)):
            if column not in batch.schema.names:
                raise EngineError("INVALID_FIELD", f"{version['name']} has no column {column}", field=field)
        columns = (batch.column(name).to_pylist() for name in ("row_id", text_column, answer_column))
        for row_id, text, answer in zip(*columns, strict=True):
            if _is_text(text) and _is_text(answer) and (not wanted or answer in wanted):
                found.append(Question(row_id, text, answer))
    return found


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def sample(found: list[Question], most: int, seed: int) -> list[Question]:
    """At most `most` questions (0: all), chosen by the seed, in their order."""
    if not most or len(found) <= most:
        return found
    chosen = sorted(random.Random(seed).sample(range(len(found)), most))  # noqa: S311 (a sample, not a secret)
    return [found[i] for i in chosen]
