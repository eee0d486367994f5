"""Own code of algorithms: the draft that people edit, and publishing it as a version."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from argosy.training.v1 import algorithm_code_service_pb2 as pb
from argosy.training.v1 import algorithm_pb2

from libs.common.ids import uuid7
from libs.common.rpc.call import Call
from libs.common.rpc.masks import fields_to_change
from libs.common.rpc.structs import from_struct
from services.training.clients.python_files import require_python
from services.training.domain import schemas
from services.training.domain.algorithms import Algorithm, AlgorithmVersion
from services.training.domain.programs import CodeFile, Limits, Program
from services.training.handlers.algorithm_messages import file_message, limits_message, struct, version_message
from services.training.handlers.algorithms import visible_algorithm
from services.training.store.algorithms import Algorithms, AlgorithmVersions

if TYPE_CHECKING:
    from services.training.app import App

_MUTABLE = frozenset({"task", "entry_file", "without_data", "parameters", "limits"})
_WHERE = "algorithm_draft"


async def get_algorithm_draft(request: pb.GetAlgorithmDraftRequest, call: Call[App]) -> pb.AlgorithmDraft:
    return _message(await _algorithm(request.name, call))


async def update_algorithm_draft(request: pb.UpdateAlgorithmDraftRequest, call: Call[App]) -> pb.AlgorithmDraft:
    given = request.algorithm_draft
    algorithm = await _algorithm(given.name, call, etag=given.etag, for_update=True)
    draft = algorithm.draft
    for field in fields_to_change(given, request.update_mask, _MUTABLE):
        if field == "parameters":
            parameters = from_struct(given.parameters, f"{_WHERE}.parameters", schemas.MOST_BYTES)
            if parameters:
                schemas.check_schema(parameters, f"{_WHERE}.parameters")
            draft = replace(draft, parameters=parameters)
        elif field == "limits":
            wanted = given.limits
            limits = Limits(wanted.max_seconds, wanted.max_memory_bytes, wanted.max_disk_bytes)
            limits.check(f"{_WHERE}.limits")
            draft = replace(draft, limits=limits)
        else:
            name = "entry" if field == "entry_file" else field
            draft = replace(draft, **{name: getattr(given, field)})
    return await _keep(algorithm, draft, call)


async def get_algorithm_draft_file(request: pb.GetAlgorithmDraftFileRequest, call: Call[App]) -> pb.CodeFileContent:
    algorithm = await _algorithm(request.name, call)
    content = await _content(algorithm.draft, request.path, request.name, call)
    content.etag = algorithm.etag
    return content


async def put_algorithm_draft_file(request: pb.PutAlgorithmDraftFileRequest, call: Call[App]) -> pb.AlgorithmDraft:
    algorithm = await _algorithm(request.name, call, etag=request.etag, for_update=True)
    blob = await call.deps.blobs.put(request.content.encode())
    return await _keep_files(algorithm, algorithm.draft.with_file(CodeFile(request.path, blob.sha256, blob.size)), call)


async def delete_algorithm_draft_file(
    request: pb.DeleteAlgorithmDraftFileRequest, call: Call[App]
) -> pb.AlgorithmDraft:
    algorithm = await _algorithm(request.name, call, etag=request.etag, for_update=True)
    return await _keep_files(algorithm, algorithm.draft.without_file(request.path, request.name), call)


async def publish_algorithm_draft(
    request: pb.PublishAlgorithmDraftRequest, call: Call[App]
) -> algorithm_pb2.AlgorithmVersion:
    algorithm = await _algorithm(request.name, call, etag=request.etag, for_update=True)
    program, now = algorithm.draft.published(), call.clock.now()
    sources = [file for file in program.files if file.path.endswith(".py")]
    await require_python({file.path: (await call.deps.blobs.read(file.sha256)).decode() for file in sources})
    version = AlgorithmVersion(
        uid=uuid7(),
        name=algorithm.next_version(),
        create_time=now,
        update_time=now,
        creator=call.principal.subject,
        parameters=program.parameters,
        program=program,
    )
    algorithm.update_time = now
    await Algorithms(call.uow).save(algorithm)
    await AlgorithmVersions(call.uow).insert(version)
    call.uow.emit("training.algorithm_version.created", version)
    return version_message(version)


async def get_algorithm_version_file(request: pb.GetAlgorithmVersionFileRequest, call: Call[App]) -> pb.CodeFileContent:
    await visible_algorithm(request.name.rsplit("/", 2)[0], call)
    program = (await AlgorithmVersions(call.uow).get(request.name)).program
    return await _content(program or Program(), request.path, request.name, call)


async def _algorithm(name: str, call: Call[App], *, etag: str = "", for_update: bool = False) -> Algorithm:
    """The algorithm of a draft, if the caller may see it and has seen it as it is."""
    algorithm = await visible_algorithm(name.removesuffix("/draft"), call, for_update=for_update)
    algorithm.require_etag(etag)
    return algorithm


async def _keep_files(algorithm: Algorithm, draft: Program, call: Call[App]) -> pb.AlgorithmDraft:
    """Keeps other files; their manifest, which is their digest, holds them in the store."""
    entries = [{"path": file.path, "sha256": file.sha256, "size": file.size} for file in draft.files]
    digest = await call.deps.blobs.commit({"kind": "training.code", "blobs": entries}) if entries else ""
    return await _keep(algorithm, replace(draft, digest=digest), call)


async def _keep(algorithm: Algorithm, draft: Program, call: Call[App]) -> pb.AlgorithmDraft:
    algorithm.draft, algorithm.update_time = draft, call.clock.now()
    await Algorithms(call.uow).save(algorithm)
    call.uow.emit("training.algorithm.updated", algorithm)
    return _message(algorithm)


async def _content(program: Program, path: str, owner: str, call: Call[App]) -> pb.CodeFileContent:
    file = program.file(path, owner)
    content = (await call.deps.blobs.read(file.sha256)).decode()
    return pb.CodeFileContent(file=file_message(file), content=content)


def _message(algorithm: Algorithm) -> pb.AlgorithmDraft:
    draft = algorithm.draft
    return pb.AlgorithmDraft(
        name=f"{algorithm.name}/draft",
        etag=algorithm.etag,
        task=draft.task,
        entry_file=draft.entry,
        without_data=draft.without_data,
        parameters=struct(draft.parameters),
        limits=limits_message(draft.limits),
        files=[file_message(file) for file in draft.files],
    )
