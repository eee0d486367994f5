"""How good the model is on rows that it does not learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from services.training.engines.batches import AnswerRows, PackedRows
from services.training.engines.group import Group
from services.training.engines.model import Objective
from services.training.engines.turn_rows import TurnRows

# Enough for a standard error of two points of exact match, few enough to cost a second.
PACKED_ROWS = 128
ANSWER_ROWS = 512
_BATCH = 32


@dataclass(frozen=True)
class Heldout:
    """Figures on held-out rows.

    Attributes:
        loss: mean cross-entropy in nats of each position that counts.
        exact_match: share of answers of which every token is the most likely one, which is what greedy generation
            gives; None for plain text.
    """

    loss: float
    exact_match: float | None


@torch.no_grad()
def evaluate(objective: Objective, rows: PackedRows | AnswerRows | TurnRows, group: Group) -> Heldout:
    """Loss and exact match on the first held-out rows; every worker takes its share and all get the same answer."""
    answered = not isinstance(rows, PackedRows)
    most = ANSWER_ROWS if answered else PACKED_ROWS
    mine = np.arange(group.rank, min(len(rows), most), group.world)
    if rows.lengths is not None:
        mine = mine[np.argsort(rows.lengths[mine], kind="stable")]
    loss = targets = exact = 0.0
    objective.eval()
    for start in range(0, len(mine), _BATCH):
        chosen = mine[start : start + _BATCH]
        batch = rows.batch(chosen).to(group.device)
        summed, hits = objective(batch.inputs, batch.places, batch.targets)
        wrong = (batch.places // batch.inputs.shape[1])[~hits]
        loss += float(summed)
        targets += len(hits)
        exact += len(chosen) - len(torch.unique(wrong))
    objective.train()
    loss, targets, exact, count = group.sum(loss, targets, exact, len(mine))
    return Heldout(loss / max(targets, 1), exact / max(count, 1) if answered else None)
