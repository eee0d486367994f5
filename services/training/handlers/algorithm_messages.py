"""Entries of the algorithm catalogue as messages."""

from __future__ import annotations

from typing import Any

from argosy.training.v1 import algorithm_pb2 as pb
from google.protobuf.struct_pb2 import Struct

from libs.common.db.mapping import to_proto
from services.training.domain.algorithms import Algorithm, AlgorithmVersion, Entry, Visibility
from services.training.domain.programs import CodeFile, Limits
from services.training.store.algorithms import entries


def algorithm_message(algorithm: Algorithm) -> pb.Algorithm:
    return to_proto(
        algorithm,
        pb.Algorithm(
            display_name=algorithm.display_name,
            description=algorithm.description,
            visibility=pb.Algorithm.Visibility.Name(algorithm.visibility),
            latest_version=algorithm.latest_version,
        ),
    )


def version_message(version: AlgorithmVersion) -> pb.AlgorithmVersion:
    message = entry_message(entries(version)[0])
    if version.program is not None:
        message.entry_file, message.code_digest = version.program.entry, version.program.digest
        message.files.extend(file_message(file) for file in version.program.files)
        message.limits.CopyFrom(limits_message(version.program.limits))
    return to_proto(version, message)


def file_message(file: CodeFile) -> pb.CodeFile:
    return pb.CodeFile(path=file.path, sha256=file.sha256, size=file.size)


def limits_message(limits: Limits) -> pb.CodeLimits:
    return pb.CodeLimits(
        max_seconds=limits.max_seconds,
        max_memory_bytes=limits.max_memory_bytes,
        max_disk_bytes=limits.max_disk_bytes,
    )


def built_in_message(entry: Entry) -> pb.Algorithm:
    """The algorithm of a built-in version."""
    return pb.Algorithm(
        name=entry.name.rsplit("/", 2)[0],
        display_name=entry.display_name,
        description=entry.description,
        visibility=pb.Algorithm.Visibility.Name(Visibility.ORGANIZATION),
        latest_version=entry.name,
    )


def entry_message(entry: Entry) -> pb.AlgorithmVersion:
    return pb.AlgorithmVersion(
        name=entry.name,
        base_version=entry.base,
        parameters=struct(entry.parameters),
        fixed=struct(entry.fixed),
        task=entry.task,
        reads=entry.reads,
        framework=entry.framework,
        column_parameters=list(entry.columns),
        code=entry.code,
        resources=pb.Resources(cpus=entry.needs.cpus, memory_bytes=entry.needs.memory_bytes, gpus=entry.needs.gpus),
    )


def struct(values: dict[str, Any]) -> Struct:
    """JSON as a message."""
    message = Struct()
    message.update(values)
    return message
