"""Carries verdicts to the model versions that they are about.

The verdict is a column of the evaluation, written with its report; this loop makes training know it, as often as it
takes. RecordGate changes nothing the second time, so a kill between the two costs a call and no more.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from argosy.training.v1 import training_pb2

from libs.common.clock import Clock
from libs.common.db.uow import Database
from libs.common.domain import DomainError
from libs.common.errors import ArgosyError
from services.eval.clients.training import TrainingClient
from services.eval.domain.evaluations import GATE_RECORDED, GATE_REFUSED, Evaluation
from services.eval.store.repositories import Evaluations

log = logging.getLogger(__name__)
# Verdicts of this process ring; this is for those of one that was killed before it could record them.
_BEAT_SECONDS = 5.0
# Waiting longer after a failure: training is away, and asking it more often does not bring it back.
_FAILURE_SECONDS = 2.0
# Nothing that a later call could change.
_FINAL = ("NOT_FOUND", "STATE_CONFLICT", "INVALID_FIELD")


class GateRecorder:
    """Looks for verdicts that are not recorded yet, and records them. Runs until cancelled."""

    def __init__(self, database: Database, training: TrainingClient, clock: Clock) -> None:
        self._database = database
        self._training = training
        self._clock = clock
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """There is a new verdict."""
        self._rung.set()

    async def run(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._rung.wait(), _BEAT_SECONDS)
            self._rung.clear()
            try:
                await self.record_pending()
            except (DomainError, ArgosyError) as error:
                log.warning("verdicts wait: %s", error.message)
                await self._clock.sleep(_FAILURE_SECONDS)

    async def record_pending(self) -> None:
        async with self._database.system(read_only=True) as uow:
            pending = await Evaluations(uow).with_pending_gates()
        for evaluation in pending:
            await self._record(evaluation)

    async def _record(self, evaluation: Evaluation) -> None:
        state = GATE_RECORDED
        try:
            await self._training.record_gate(evaluation.model_version, _gate(evaluation), evaluation.traceparent)
        except ArgosyError as error:
            if not error.is_reason(*_FINAL):
                raise
            log.error("training refuses the verdict of %s: %s", evaluation.name, error.message)
            state = GATE_REFUSED
        async with self._database.system(traceparent=evaluation.traceparent) as uow:
            repository = Evaluations(uow)
            current = await repository.get(evaluation.name, deleted=True, for_update=True)
            current.gate_state = state
            await repository.save(current)


def _gate(evaluation: Evaluation) -> training_pb2.Gate:
    verdict = evaluation.report["verdict"]
    gate = training_pb2.Gate(
        gate=verdict["gate"],
        open=verdict["open"],
        evaluation=evaluation.name,
        rule=verdict["rule"],
        reason=verdict["reason"],
        figures=evaluation.figures(),
        model_digest=evaluation.model_digest,
    )
    gate.decide_time.FromDatetime(evaluation.update_time)
    return gate
