"""Leakage: held-out rows that a run learns from too, so that losses on them are no held-out losses."""

from __future__ import annotations

from dataclasses import dataclass

# As in the gate of an evaluation: a few rows that everybody writes alike move no figure.
MOST_LEAKED = 0.01


@dataclass(frozen=True)
class Leakage:
    """How much of a held-out version is in the version to learn from.

    Attributes:
        text_column: that was compared.
        leaked_rows: that are in it exactly or nearly.
        leaked_share: of all held-out rows, 0 to 1.
    """

    text_column: str
    test_rows: int
    leaked_rows: int
    leaked_share: float

    @property
    def fault(self) -> str | None:
        """Why the run must not begin; None if it may."""
        if self.leaked_share <= MOST_LEAKED:
            return None
        return (
            f"{self.leaked_rows:,} of {self.test_rows:,} rows of the validation version ({self.leaked_share:.2%}) are "
            f"in the dataset version too, exactly or nearly, by column {self.text_column!r}; at most {MOST_LEAKED:.0%} "
            "may be. SplitVersion makes two versions without rows in common; `argosy dataset leakage` shows the rows."
        )
