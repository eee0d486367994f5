"""How good the model is on rows that it does not learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.training.engines.batches import Batch, PackedRows, Rows
from services.training.engines.encode import Array
from services.training.engines.group import Group
from services.training.engines.model import MethodObjective
from services.training.engines.sharding import is_sharded

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


def shares(rows: Rows, group: Group) -> Iterator[Array]:
    """This worker's share of all rows, in batches of like length: as many for each worker, so that the last may be
    empty."""
    mine = np.arange(group.rank, len(rows), group.world)
    if rows.lengths is not None:
        mine = mine[np.argsort(rows.lengths[mine], kind="stable")]
    for start in range(0, -(-len(rows) // group.world), _BATCH):
        yield mine[start : start + _BATCH]


@torch.no_grad()
def passes(objective: MethodObjective, rows: Rows, group: Group) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """This worker's share of the rows through the objective: batch, summed loss and what else was seen."""
    objective.eval()
    for chosen in shares(rows, group):
        if len(chosen) or is_sharded(objective.model):
            # Divided layers are put together by all workers: one without a row left computes another one for nothing.
            batch = rows.batch(chosen if len(chosen) else np.zeros(1, np.int64)).to(group.device)
            with group.computing():
                summed, seen = objective(*batch.tensors)
            if len(chosen):
                yield batch, summed, seen
    objective.train()


def evaluate(objective: MethodObjective, rows: Rows, group: Group) -> Heldout:
    """Loss and exact match; every worker takes its share and all get the same answer."""
    loss = targets = exact = count = 0.0
    for batch, summed, hits in passes(objective, rows, group):
        inputs, places = batch.tensors[:2]
        loss += float(summed)
        targets += len(hits)
        exact += exact_answers(inputs, places, hits)
        count += len(inputs)
    loss, targets, exact, count = group.sum(loss, targets, exact, count)
    return Heldout(loss / max(targets, 1), exact / max(count, 1) if not isinstance(rows, PackedRows) else None)


def exact_answers(inputs: Tensor, places: Tensor, hits: Tensor) -> int:
    """How many rows of a batch have no target that was not the most likely token."""
    return len(inputs) - len(torch.unique((places // inputs.shape[1])[~hits]))


def measured(objective: MethodObjective, rows: Rows, group: Group) -> dict[str, float]:
    """Mean loss and the means of the objective's figures; every worker takes its share and all get the same."""
    # A worker without a share has the same names.
    totals: dict[str, float] = {"loss": 0.0, **objective.figures(torch.zeros(0, 2))}
    for _, summed, seen in passes(objective, rows, group):
        for name, value in {"loss": float(summed), **objective.figures(seen)}.items():
            totals[name] += value
    count = rows.target_count(np.arange(len(rows)))
    return {name: value / count for name, value in zip(totals, group.sum(*totals.values()), strict=True)}
