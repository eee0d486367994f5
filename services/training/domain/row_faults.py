"""What is wrong with single rows, named by their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.training.domain.conversations import ConversationError, parse_conversation, parse_preference
from services.training.domain.spec import Phase


@dataclass(frozen=True)
class RowFault:
    """One row at fault.

    Attributes:
        version: which of the two it is of, `dataset_version` or `validation_version`.
        row: its number, counted from 1.
        phase: that cannot learn it.
        column: at fault.
        blocking: whether a run would end at it; other rows at fault are left out.
        problem: what is wrong, for people.
    """

    version: str
    row: int
    phase: str
    column: str
    blocking: bool
    problem: str


def row_fault(version: str, number: int, name: str, phase: Phase, row: Mapping[str, str]) -> RowFault | None:
    """What a phase has against a row; None: nothing.

    Args:
        version: as in `RowFault`.
        number: of the row, counted from 1.
        name: of the phase.
        row: column to text; a column that is not there is empty.
    """
    texts = tuple(row.get(column, "") for column in phase.columns)
    if phase.messages_column:
        try:
            if phase.compares:
                parse_preference(texts, phase.columns)
            else:
                parse_conversation(texts[0], phase.messages_column)
        except ConversationError as error:
            place, _, problem = str(error).partition(": ")
            return RowFault(version, number, name, place, True, problem)
        return None
    for column, text in zip(phase.columns, texts, strict=True):
        if not text:
            return RowFault(version, number, name, column, False, "is empty")
    if phase.compares and texts[1] == texts[2]:
        return RowFault(version, number, name, phase.rejected_column, False, f"is the same as {phase.chosen_column}")
    return None
