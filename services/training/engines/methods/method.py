"""What every method gives to the loop: how its rows are encoded, what it minimises, how good it is on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from services.training.domain.spec import Phase
from services.training.engines.base import BaseText
from services.training.engines.batches import Rows
from services.training.engines.chat_template import ChatTemplate
from services.training.engines.data import Columns
from services.training.engines.encode import Array, Encoded
from services.training.engines.group import Group
from services.training.engines.model import MethodObjective

# Gives the answers of a teacher to texts.
Answers = Callable[[list[str]], list[str]]


@dataclass(frozen=True)
class Reading:
    """How the rows of a phase become tokens.

    Attributes:
        text: how the model reads and writes.
        length: context in tokens.
        template: renders conversations, for a phase that has them.
        teacher: for a phase that copies answers.
    """

    text: BaseText
    phase: Phase
    length: int
    template: ChatTemplate | None = None
    teacher: Answers | None = None


@dataclass(frozen=True)
class RowBatch:
    """Rows of a version that lie behind each other.

    Attributes:
        first: number of the first one, counted from 0.
        columns: text of the columns that the phase reads.
        chosen: places in the batch of the rows that are wanted, rising.
        what: version that they are of, for errors.
    """

    first: int
    columns: Columns
    chosen: Sequence[int]
    what: str = "dataset version"

    def wanted(self, name: str) -> list[str]:
        """Text of a column in the rows that are wanted."""
        column = self.columns[name]
        return [column[place] for place in self.chosen]


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
        learns: whether each row of a batch has what the phase learns from; None: every row counts as one that has.
        encode: the wanted rows of a batch to tokens.
        heldout_rows: most held-out rows.
        rows: arrays by name to rows.
        begin: makes a phase ready.
        cost: of a token of a row, beside one of pre-training.
        worst_loss: above it a run has diverged; from the phase and the size of the vocabulary.
        loss_falls: whether a loss that does not fall is a warning.
    """

    learns: Callable[[Phase, Columns], list[bool]] | None
    encode: Callable[[Reading, RowBatch], Encoded]
    heldout_rows: int
    rows: Callable[[Callable[[str], Array]], Rows]
    begin: Callable[[Start], Work]
    cost: float
    worst_loss: Callable[[Phase, int], float]
    loss_falls: bool = True
