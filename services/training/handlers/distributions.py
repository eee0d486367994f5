"""How workers share the work: values of the domain and messages."""

from __future__ import annotations

from argosy.training.v1 import distribution_pb2 as pb

from services.training.domain.distribution import Distribution, Precision, Sharding

_SHARDINGS = {
    Sharding.NONE: pb.Distribution.SHARDING_NONE,
    Sharding.FULL: pb.Distribution.SHARDING_FULL,
    Sharding.FULL_OFFLOAD: pb.Distribution.SHARDING_FULL_OFFLOAD,
}
_PRECISIONS = {
    Precision.FLOAT32: pb.Distribution.PRECISION_FLOAT32,
    Precision.BFLOAT16: pb.Distribution.PRECISION_BFLOAT16,
}


def distribution_message(distribution: Distribution) -> pb.Distribution:
    return pb.Distribution(
        sharding=_SHARDINGS[distribution.sharding],
        min_workers=distribution.min_workers,
        precision=_PRECISIONS[distribution.precision],
        activation_checkpointing=distribution.activation_checkpointing,
        compile=distribution.compile,
    )


def distribution_from(message: pb.Distribution, gpus_per_worker: int) -> Distribution:
    """With its defaults written out."""
    shardings = {number: sharding for sharding, number in _SHARDINGS.items()}
    precisions = {number: precision for precision, number in _PRECISIONS.items()}
    usual = Precision.BFLOAT16 if gpus_per_worker else Precision.FLOAT32
    return Distribution(
        sharding=shardings.get(message.sharding, Sharding.NONE),
        min_workers=message.min_workers,
        precision=precisions.get(message.precision, usual),
        activation_checkpointing=message.activation_checkpointing,
        compile=message.compile,
    )
