"""What a run of AutoML found, as data: columns, models in order, figures, importances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.training.domain.searches import TrialState
from services.training.engines.automl.columns import Column
from services.training.engines.automl.task import Answers
from services.training.engines.automl.trials import Tried

Json = dict[str, Any]


@dataclass
class Report:
    """Its JSON is `argosy.training.v1.Leaderboard`, with the names of that message.

    Attributes:
        warnings: what somebody should look at before the model is used.
        parts: that the rows were divided into.
        rows: that the mean learned from; 0 while models are tried.
        figures, importances: empty while models are tried.
    """

    target: str
    columns: Sequence[Column]
    answers: Answers
    warnings: list[str]
    parts: int = 0
    rows: int = 0
    figures: list[Json] = field(default_factory=list[Json])
    importances: dict[str, float] = field(default_factory=dict[str, float])

    def lines(self) -> list[str]:
        """For the log."""
        lines = [f"{self.answers.task}, because {self.answers.reason}"]
        lines += [
            f"column {column.name!r} is left out: it {column.dropped}" for column in self.columns if column.dropped
        ]
        lines += [
            f"column {column.name!r}: {note}" for column in self.columns if not column.dropped for note in column.notes
        ]
        return lines + [f"WARNING: {warning}" for warning in self.warnings]

    def to_json(self, tried: Sequence[Tried], weights: Mapping[int, float]) -> Json:
        """All of it.

        Args:
            weights: of the models of the mean, by number; empty while models are tried.
        """
        numbers = not self.answers.classes
        ordered = sorted(tried, key=lambda each: (each.state is not TrialState.FINISHED, each.score, each.number))
        scale = self.answers.scale if numbers else 1.0
        return {
            "target_column": self.target,
            "task": self.answers.task,
            "task_reason": self.answers.reason,
            "row_count": self.rows or len(self.answers.values),
            "part_count": self.parts,
            "metric": "rmse" if numbers else "log_loss",
            "columns": [_column(column) for column in self.columns],
            "warnings": self.warnings,
            "entries": [
                _entry(rank, each, scale, weights.get(each.number, 0.0)) for rank, each in enumerate(ordered, 1)
            ],
            "figures": self.figures,
            "importances": self.importances,
        }


def _column(column: Column) -> Json:
    return {
        "column": column.name,
        "kind": column.kind,
        "missing_share": column.missing,
        "distinct_count": column.distinct,
        "dropped": column.dropped,
        "notes": column.notes,
    }


def _entry(rank: int, tried: Tried, scale: float, weight: float) -> Json:
    return {
        "rank": rank if tried.state is TrialState.FINISHED else 0,
        "number": tried.number,
        "family": tried.family,
        "parameters": tried.parameters,
        "state": f"STATE_{tried.state}",
        "score": tried.score * scale,
        "low": tried.low * scale,
        "high": tried.high * scale,
        "fit_seconds": tried.seconds,
        "size_bytes": tried.size,
        "weight": weight,
        "message": tried.message,
    }
