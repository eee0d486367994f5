"""Trainings as YAML documents."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from argosy.training.v1 import search_pb2, search_service_pb2, training_pb2, training_service_pb2
from argosy.training.v1 import training_document_service_pb2 as pb

from libs.common import plain_yaml
from libs.common.domain import DomainError
from libs.common.errors import ArgosyError, invalid_field
from libs.common.rpc.call import Call
from libs.common.rpc.interceptors.validate import require_valid
from services.training.domain.trainings import Training
from services.training.handlers.messages import training_message
from services.training.handlers.trainings import MUTABLE, change, create_training
from services.training.handlers.yaml_messages import Reader, plain, write
from services.training.store.repositories import Trainings

if TYPE_CHECKING:
    from services.training.app import App

_WHERE = "yaml"
# What a document says of a search; its training is the document's own.
_SEARCH = frozenset({"display_name", "labels", "space", "method", "early_stopping", "objective", "budget", "seed"})
_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Document:
    """What a document says.

    Attributes:
        id: of the training.
        search: None: it describes none.
        reader: knows the lines.
    """

    id: str
    training: training_pb2.Training
    search: search_pb2.HyperparameterSearch | None
    reader: Reader


async def apply_training(request: pb.ApplyTrainingRequest, call: Call[App]) -> pb.ApplyTrainingResponse:
    # Half a second for the longest: other calls go on meanwhile.
    document = await asyncio.to_thread(read_document, request.yaml)
    name = f"{request.parent}/trainings/{document.id}"
    with _lines(document.reader):
        _require_valid(document, request.parent)
        found = await Trainings(call.uow).find(name, for_update=True)
        before = training_message(found) if found is not None else training_pb2.Training()
        if found is None:
            wanted = training_service_pb2.CreateTrainingRequest(
                parent=request.parent, training_id=document.id, training=document.training
            )
            after = await create_training(wanted, call)
        else:
            after = await _changed(found, document.training, call)
    fields = [field for field in sorted(MUTABLE) if getattr(before, field) != getattr(after, field)]
    if document.search is not None:
        document.search.training = name
    return pb.ApplyTrainingResponse(
        training=after, search=document.search, changed_fields=fields, created=found is None
    )


async def _changed(training: Training, given: training_pb2.Training, call: Call[App]) -> training_pb2.Training:
    """The training with what the document says; stored where that is something else."""
    before = training_message(training)
    await change(training, given, sorted(MUTABLE), call)
    if training_message(training) == before:
        return before
    training.update_time = call.clock.now()
    await Trainings(call.uow).save(training)
    call.uow.emit("training.training.updated", training)
    return training_message(training)


async def export_training(request: pb.ExportTrainingRequest, call: Call[App]) -> pb.ExportTrainingResponse:
    training = await Trainings(call.uow).get(request.name)
    message = training_message(training)
    if message.base_model_version:
        # The rest of the shape is that of the base.
        length = message.spec.architecture.sequence_length
        message.spec.architecture.CopyFrom(training_pb2.Architecture(sequence_length=length))
    return pb.ExportTrainingResponse(yaml=write({"name": training.id, **plain(message, MUTABLE)}))


def read_document(text: str) -> Document:
    """A document.

    Raises:
        ArgosyError: INVALID_FIELD with line, path and what is allowed there.
    """
    node = plain_yaml.compose(text, _WHERE)
    if node is None:
        raise invalid_field(_WHERE, "is empty")
    reader, training = Reader(), training_pb2.Training()
    pairs = reader.pairs(node, "")
    reader.read(
        {key: value for key, value in pairs.items() if key != "name"}, training, "", {*MUTABLE, "name", "search"}
    )
    if "name" not in pairs:
        raise invalid_field("name", "must be set: the id of the training")
    given = pairs["name"].value
    if not isinstance(given, str) or not _ID.fullmatch(given):
        raise reader.fault("name", "must be the id of the training: small letters, digits and dashes")
    search = None
    if "search" in pairs:
        search = search_pb2.HyperparameterSearch()
        reader.read(reader.pairs(pairs["search"], "search"), search, "search", _SEARCH)
    return Document(given, training, search, reader)


def _require_valid(document: Document, parent: str) -> None:
    """The rules of the protos, which requests have behind them when they come here."""
    require_valid(document.training, "training")
    if document.search is not None:
        document.search.training = f"{parent}/trainings/{document.id}"
        require_valid(search_service_pb2.CreateSearchRequest(parent=parent, search=document.search), "")


@contextmanager
def _lines(reader: Reader) -> Generator[None]:
    """Says in which line stands what is refused."""
    try:
        yield
    except (ArgosyError, DomainError) as error:
        if error.reason != "INVALID_FIELD":
            raise
        path = str(error.metadata.get("field", "")).removeprefix(".").removeprefix("training.")
        line = _line(reader, path)
        message = f"{error.message.rstrip('.')} (line {line})" if line else error.message
        violations = error.violations if isinstance(error, ArgosyError) else ()
        raise ArgosyError("INVALID_FIELD", message, metadata={"field": path}, violations=violations) from None


def _line(reader: Reader, path: str) -> int:
    """Of a field, or of what is around it where the field itself is not there."""
    while path and path not in reader.lines:
        path = re.sub(r"(\[[^\]]*\]|\.?[^.\[]*)$", "", path)
    return reader.lines.get(path, 0)
