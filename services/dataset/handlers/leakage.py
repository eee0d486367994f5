"""Leakage: whether a training version has rows of a test version, compared by a task, kept for whoever asks again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from argosy.common.v1 import task_pb2
from argosy.dataset.v1 import dataset_pb2
from argosy.dataset.v1 import dataset_service_pb2 as pb
from google.protobuf import json_format

from libs.common.db.mapping import timestamp
from libs.common.errors import ArgosyError
from libs.common.rpc.call import Call
from libs.common.tasks import store as task_store
from services.dataset.domain.leakage import check_name
from services.dataset.domain.tasks import LEAKAGE
from services.dataset.store.repositories import LeakageChecks
from services.dataset.store.visible import visible_version

if TYPE_CHECKING:
    from services.dataset.app import App

_TEXT_COLUMN = "text"
# As for cleaning and splits: what half of the field takes as "the same text".
_THRESHOLD = 0.8


async def check_leakage(request: pb.CheckLeakageRequest, call: Call[App]) -> task_pb2.Task:
    work, checks = await _asked(request, call), LeakageChecks(call.uow)
    # Two who ask at the same time get one task.
    await checks.lock(work["check"])
    found = await checks.find(work["check"])
    if found is not None:
        return (await task_store.get(call.uow, found.task)).to_proto()
    begun = await task_store.living(call.uow, LEAKAGE, {"check": work["check"]})
    if begun is not None:
        return begun.to_proto()
    return await call.deps.tasks.create(call.uow, call.org, LEAKAGE, work["test_version"], work, call.principal.subject)


async def get_leakage_check(request: pb.GetLeakageCheckRequest, call: Call[App]) -> dataset_pb2.LeakageCheck:
    work = await _asked(request, call)
    found = await LeakageChecks(call.uow).find(work["check"])
    if found is None:
        message = f"{request.name} was not compared with {request.train_version} like this yet: CheckLeakage does it."
        raise ArgosyError("NOT_FOUND", message, metadata={"name": request.name})
    check = json_format.ParseDict(found.figures, dataset_pb2.LeakageCheck())
    check.test_version, check.train_version = work["test_version"], work["train_version"]
    check.text_column, check.train_text_column = work["text_column"], work["train_text_column"]
    check.task = found.task
    check.check_time.CopyFrom(timestamp(found.update_time))
    return check


async def _asked(request: pb.CheckLeakageRequest | pb.GetLeakageCheckRequest, call: Call[App]) -> dict[str, Any]:
    """What is to be compared, defaults filled in, if the principal may see both versions."""
    _, test = await visible_version(call.uow, request.name, call.principal)
    _, train = await visible_version(call.uow, request.train_version, call.principal)
    text_column = request.text_column or _TEXT_COLUMN
    train_text_column = request.train_text_column or text_column
    test.require_column(text_column, "text_column")
    train.require_column(train_text_column, "train_text_column")
    threshold = request.near_duplicate_threshold or _THRESHOLD
    return {
        "check": check_name(test, train, text_column, train_text_column, threshold),
        "test_version": test.name,
        "train_version": train.name,
        "text_column": text_column,
        "train_text_column": train_text_column,
        "near_duplicate_threshold": threshold,
    }
