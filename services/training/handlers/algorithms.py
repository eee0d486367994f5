"""The algorithm catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from argosy.training.v1 import algorithm_pb2
from argosy.training.v1 import algorithm_service_pb2 as pb

from libs.common.domain import DomainError
from libs.common.ids import resource_id, uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.pagination import PageToken, page_size
from libs.common.rpc.structs import from_struct
from services.training.domain import built_in, schemas
from services.training.domain.algorithms import SYSTEM, Algorithm, AlgorithmVersion, Visibility
from services.training.domain.spec import invalid
from services.training.handlers.algorithm_messages import (
    algorithm_message,
    built_in_message,
    entry_message,
    version_message,
)
from services.training.store.algorithms import Algorithms, AlgorithmVersions

if TYPE_CHECKING:
    from services.training.app import App

# Value of argosy.common.v1.Role.
_ROLE_ADMIN, _ROLE_SYSTEM = 4, 5
_MUTABLE = frozenset({"display_name", "description", "visibility", "labels"})


async def get_algorithm(request: pb.GetAlgorithmRequest, call: Call[App]) -> algorithm_pb2.Algorithm:
    if _is_built_in(request.name, call):
        return built_in_message(built_in.built_in(f"{request.name}/versions/1"))
    return algorithm_message(await visible_algorithm(request.name, call))


async def list_algorithms(request: pb.ListAlgorithmsRequest, call: Call[App]) -> pb.ListAlgorithmsResponse:
    size, after = page_size(request.page_size), PageToken.decode(request)
    if _is_built_in(f"{request.parent}/", call):
        behind = [entry for entry in sorted(built_in.ENTRIES, key=lambda entry: entry.id) if entry.id > after]
        return pb.ListAlgorithmsResponse(
            algorithms=[built_in_message(entry) for entry in behind[:size]],
            next_page_token=PageToken.encode(request, behind[size - 1].id if len(behind) > size else ""),
        )
    algorithms = Algorithms(call.uow)
    sees_all = call.principal.role >= _ROLE_ADMIN
    filters = () if sees_all else (algorithms.published_or_of(call.principal.subject),)
    found, position = await algorithms.list(request.parent, size, after, filters=filters)
    return pb.ListAlgorithmsResponse(
        algorithms=[algorithm_message(one) for one in found], next_page_token=PageToken.encode(request, position)
    )


async def create_algorithm(request: pb.CreateAlgorithmRequest, call: Call[App]) -> algorithm_pb2.Algorithm:
    if request.parent == SYSTEM:
        raise invalid("parent", f"must not be {SYSTEM}: its algorithms are built in")
    given, now = request.algorithm, call.clock.now()
    algorithm = Algorithm(
        uid=uuid7(),
        name=f"{request.parent}/algorithms/{request.algorithm_id or resource_id('algorithm')}",
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        labels=dict(given.labels),
        display_name=given.display_name,
        description=given.description,
        visibility=given.visibility or Visibility.OWN,
    )
    await Algorithms(call.uow).insert(algorithm)
    call.uow.emit("training.algorithm.created", algorithm)
    return algorithm_message(algorithm)


async def update_algorithm(request: pb.UpdateAlgorithmRequest, call: Call[App]) -> algorithm_pb2.Algorithm:
    given = request.algorithm
    algorithm = await visible_algorithm(given.name, call, for_update=True)
    algorithm.require_etag(given.etag)
    for field in fields_to_change(given, request.update_mask, _MUTABLE):
        if field == "labels":
            algorithm.labels = dict(given.labels)
        elif field == "visibility":
            algorithm.visibility = given.visibility or Visibility.OWN
        else:
            setattr(algorithm, field, getattr(given, field))
    algorithm.update_time = call.clock.now()
    await Algorithms(call.uow).save(algorithm)
    call.uow.emit("training.algorithm.updated", algorithm)
    return algorithm_message(algorithm)


async def delete_algorithm(request: pb.DeleteAlgorithmRequest, call: Call[App]) -> algorithm_pb2.Algorithm:
    algorithm = await visible_algorithm(request.name, call, for_update=True)
    algorithm.require_etag(request.etag)
    await Algorithms(call.uow).soft_delete(algorithm, call.clock.now())
    call.uow.emit("training.algorithm.deleted", algorithm)
    return algorithm_message(algorithm)


async def get_algorithm_version(
    request: pb.GetAlgorithmVersionRequest, call: Call[App]
) -> algorithm_pb2.AlgorithmVersion:
    if _is_built_in(request.name, call):
        return entry_message(built_in.built_in(request.name))
    await visible_algorithm(request.name.rsplit("/", 2)[0], call)
    return version_message(await AlgorithmVersions(call.uow).get(request.name))


async def list_algorithm_versions(
    request: pb.ListAlgorithmVersionsRequest, call: Call[App]
) -> pb.ListAlgorithmVersionsResponse:
    size, after = page_size(request.page_size), PageToken.decode(request)
    if _is_built_in(request.parent, call):
        entry = built_in.built_in(f"{request.parent}/versions/1")
        return pb.ListAlgorithmVersionsResponse(algorithm_versions=[entry_message(entry)])
    await visible_algorithm(request.parent, call)
    found, position = await AlgorithmVersions(call.uow).list(request.parent, size, after)
    return pb.ListAlgorithmVersionsResponse(
        algorithm_versions=[version_message(one) for one in found],
        next_page_token=PageToken.encode(request, position),
    )


async def create_algorithm_version(
    request: pb.CreateAlgorithmVersionRequest, call: Call[App]
) -> algorithm_pb2.AlgorithmVersion:
    given, now = request.algorithm_version, call.clock.now()
    if not given.base_version:
        raise invalid("algorithm_version.base_version", "must be set")
    where, base = "algorithm_version", built_in.built_in(given.base_version)
    algorithm = await visible_algorithm(request.parent, call, for_update=True)
    version = AlgorithmVersion(
        uid=uuid7(),
        name=algorithm.next_version(),
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        parameters=from_struct(given.parameters, f"{where}.parameters", schemas.MOST_BYTES) or schemas.EMPTY,
        fixed=from_struct(given.fixed, f"{where}.fixed", schemas.MOST_BYTES),
    )
    version.derive(base)
    version.require_sound(base)
    algorithm.update_time = now
    await Algorithms(call.uow).save(algorithm)
    await AlgorithmVersions(call.uow).insert(version)
    call.uow.emit("training.algorithm_version.created", version)
    return version_message(version)


def _is_built_in(name: str, call: Call[App]) -> bool:
    """Whether a name is one of those that everybody reads. Raises NOT_FOUND for those of other organizations."""
    if name.startswith(f"{SYSTEM}/"):
        return True
    principal = call.principal
    if principal.org and name.split("/")[1] != principal.org and principal.role < _ROLE_SYSTEM:
        raise DomainError("NOT_FOUND", f"{name.rstrip('/')} does not exist.", name=name)
    return False


async def visible_algorithm(name: str, call: Call[App], *, for_update: bool = False) -> Algorithm:
    principal = call.principal
    return await Algorithms(call.uow).visible(name, principal.subject, principal.role, for_update=for_update)
