"""Entries of the algorithm catalogue as messages."""

from __future__ import annotations

from typing import Any

from argosy.training.v1 import algorithm_pb2 as pb
from google.protobuf.struct_pb2 import Struct

from libs.common.db.mapping import to_proto
from services.training.domain.algorithms import Algorithm, AlgorithmVersion, Entry, Visibility


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


def version_message(version: AlgorithmVersion, base: Entry) -> pb.AlgorithmVersion:
    return to_proto(version, entry_message(version.entry(base)))


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
