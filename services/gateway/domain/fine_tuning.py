"""What `auto` means for the hyper-parameters of a fine-tuning job."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

# https://cookbook.openai.com/examples/chat_finetuning_data_prep, section "Cost Estimation": three epochs, but so many
# that the job sees at least 100 rows (at most 25 epochs), and so few that it sees at most 25,000 (at least one).
_EPOCHS = 3
_LEAST_ROWS, _MOST_EPOCHS = 100, 25
_MOST_ROWS = 25_000
# OpenAI's guide to fine-tuning of GPT-3: "by default, the batch size will be dynamically configured to be ~0.2 % of the
# number of examples in the training set, capped at 256".
_BATCH_SHARE = 0.002
MOST_BATCH = 256
# The same guide: the learning rate of pre-training, times 0.05, 0.1 or 0.2, depending on the batch size. It does not
# say where the steps are; here they are behind 8 and behind 64 rows.
_MULTIPLIERS = (0.05, 0.1, 0.2)
_BATCH_STEPS = (9, 65)
# Rafailov et al., 2023 (DPO), section 6.
_BETA = 0.1
# Brown et al., 2020 (GPT-3), table 2.1: parameters, and the learning rate of pre-training.
_PARAMETERS = (350e6, 760e6, 1.3e9, 2.7e9, 6.7e9, 13e9, 175e9)
_LEARNING_RATES = (6.0e-4, 3.0e-4, 2.5e-4, 2.0e-4, 1.6e-4, 1.2e-4, 1.0e-4, 0.6e-4)


@dataclass(frozen=True)
class Hyperparameters:
    """What a caller chose; None: `auto`.

    Attributes:
        n_epochs: how often each row is read.
        batch_size: rows a step.
        learning_rate_multiplier: of the learning rate that the base model was made with.
        beta: how strongly the model is held to what it was, for preferences.
    """

    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class Plan:
    """The same with every number known.

    Attributes:
        steps: optimiser steps.
        steps_per_epoch: after so many, each row was read once more.
        learning_rate: at its peak.
    """

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    steps: int
    steps_per_epoch: int
    learning_rate: float
    beta: float


def plan(asked: Hyperparameters, rows: int, base_rate: float) -> Plan:
    """The numbers of a job.

    Args:
        asked: what the caller chose.
        rows: of the training file, at least one.
        base_rate: learning rate that the base model was made with.
    """
    epochs = asked.n_epochs or _epochs(rows)
    # More rows a step than there are would only read some of them twice.
    batch = min(rows, asked.batch_size or min(MOST_BATCH, max(1, round(rows * _BATCH_SHARE))))
    multiplier = asked.learning_rate_multiplier or _MULTIPLIERS[bisect_right(_BATCH_STEPS, batch)]
    return Plan(
        n_epochs=epochs,
        batch_size=batch,
        learning_rate_multiplier=multiplier,
        steps=math.ceil(rows * epochs / batch),
        steps_per_epoch=math.ceil(rows / batch),
        learning_rate=min(1.0, base_rate * multiplier),
        beta=asked.beta or _BETA,
    )


def usual_rate(parameters: int) -> float:
    """The learning rate with which models of so many parameters are pre-trained, where nothing is known of this one."""
    return _LEARNING_RATES[bisect_right(_PARAMETERS, parameters)]


def _epochs(rows: int) -> int:
    if rows * _EPOCHS < _LEAST_ROWS:
        return min(_MOST_EPOCHS, _LEAST_ROWS // rows)
    if rows * _EPOCHS > _MOST_ROWS:
        return max(1, _MOST_ROWS // rows)
    return _EPOCHS
