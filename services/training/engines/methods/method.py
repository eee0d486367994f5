"""What every method gives to the loop: how its rows are encoded, what it minimises, how good it is on held-out rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from services.training.domain.spec import Phase
from services.training.engines.base import BaseText
from services.training.engines.batches import Rows
from services.training.engines.encode import Array
from services.training.engines.group import Group
from services.training.engines.model import MethodObjective

Arrays = dict[str, Array]
Columns = dict[str, list[str]]
# Gives the answers of a teacher to texts.
Answers = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class Reading:
    """What a phase is encoded from.

    Attributes:
        text: how the model reads and writes.
        columns: text of the columns that it reads.
        order: row numbers, in the order in which they are wanted.
        length: context in tokens.
        wanted: most rows.
        teacher: for a phase that copies answers.
    """

    text: BaseText
    columns: Columns
    phase: Phase
    order: Array
    length: int
    wanted: int
    teacher: Answers | None = None


@dataclass(frozen=True)
class Start:
    """What a phase begins with in a worker.

    Attributes:
        model: as the phase before left it, or as the checkpoint has it.
        number: of the phase.
        seed: of the run.
        train, heldout: rows as they were encoded; None where no row is held out.
        text: how the model reads and writes.
        frozen: loads the phase's teacher or reward model.
        should_stop: whether the task was cancelled; asked while the phase is made ready.
        kept: what an earlier attempt kept of the beginning of the phase; None: it begins now.
    """

    model: nn.Module
    phase: Phase
    number: int
    seed: int
    group: Group
    train: Rows
    heldout: Rows | None
    text: BaseText
    frozen: Callable[[], nn.Module]
    should_stop: Callable[[], bool]
    kept: dict[str, Tensor] | None


@dataclass(frozen=True)
class Work:
    """A phase ready to be learned.

    Attributes:
        objective: what it minimises.
        train, heldout: rows as the objective takes them.
        measure: figures on the held-out rows by name; all workers call it and get the same.
        kept: tensors of the beginning of the phase that a resumed run needs.
    """

    objective: MethodObjective
    train: Rows
    heldout: Rows | None
    measure: Callable[[], dict[str, float]]
    kept: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


@dataclass(frozen=True)
class Learning:
    """One method.

    Attributes:
        encode: rows to arrays by name; None when no row fits.
        heldout_rows: most held-out rows.
        rows: arrays by name to rows.
        begin: makes a phase ready.
        cost: of a token of a row, beside one of pre-training.
        worst_loss: above it a run has diverged; from the phase and the size of the vocabulary.
        loss_falls: whether a loss that does not fall is a warning.
    """

    encode: Callable[[Reading], Arrays | None]
    heldout_rows: int
    rows: Callable[[Callable[[str], Array]], Rows]
    begin: Callable[[Start], Work]
    cost: float
    worst_loss: Callable[[Phase, int], float]
    loss_falls: bool = True
