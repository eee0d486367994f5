"""What training tells others when a model version moves."""

from __future__ import annotations

from collections.abc import Sequence

from argosy.training.v1 import training_events_pb2

from libs.common.db.uow import UnitOfWork
from services.training.domain.models import ModelVersion, Transition


def emit_moved(uow: UnitOfWork, version: ModelVersion, transitions: Sequence[Transition]) -> None:
    """`training.model_version.moved` for each stage that the version has got; call it after it was saved."""
    for move in transitions:
        if move.from_stage != move.to_stage:
            payload = training_events_pb2.ModelVersionMoved(
                version=version.name, from_stage=move.from_stage, to_stage=move.to_stage, state=move.to_state
            )
            uow.emit("training.model_version.moved", version, payload)
