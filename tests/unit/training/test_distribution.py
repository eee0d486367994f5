"""What goes with what when workers share the work, and what it is estimated to need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from argosy.training.v1 import distribution_pb2 as distribution_pb
from argosy.training.v1 import training_pb2 as pb

from libs.common.domain import DomainError
from services.training.domain.adapter import Adapter
from services.training.domain.distribution import Distribution, Precision, Sharding
from services.training.domain.estimate import estimate
from services.training.domain.spec import Method, TrainingSpec
from services.training.handlers.messages import spec_from, spec_message
from tests.unit.training.samples import TINY, phase, tiny_spec

FULL = Distribution(Sharding.FULL)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"distribution": Distribution(min_workers=3)}, "min_workers"),
        ({"distribution": Distribution(Sharding.FULL_OFFLOAD)}, "sharding"),
        ({"distribution": Distribution(precision=Precision.BFLOAT16)}, "precision"),
        ({"distribution": Distribution(compile=True)}, "compile"),
        ({"distribution": FULL, "adapter": Adapter(rank=4, alpha=8)}, "sharding"),
        *(
            ({"distribution": FULL, "phases": (phase(method, 3, beta=0.1),)}, "sharding")
            for method in (Method.DPO, Method.REWARD)
        ),
    ],
)
def test_what_does_not_go_together_is_named(given: dict[str, Any], field: str) -> None:
    spec = replace(tiny_spec(workers=2), **given)
    with pytest.raises(DomainError) as caught:
        spec.check(based=True)
    assert caught.value.reason == "INVALID_FIELD"
    assert f"spec.distribution.{field}" in str(caught.value)


def test_what_goes_together_is_taken() -> None:
    tiny_spec(workers=2, distribution=replace(FULL, min_workers=1, activation_checkpointing=True)).check()
    on_gpus = Distribution(Sharding.FULL_OFFLOAD, precision=Precision.BFLOAT16, compile=True)
    tiny_spec(workers=2, gpus_per_worker=1, distribution=on_gpus).check()


@pytest.mark.parametrize(("least", "most", "expected"), [(0, 4, 4), (2, 4, (2, 4)), (4, 4, 4), (2, 1, 1)])
def test_workers_are_a_number_or_a_range(least: int, most: int, expected: Any) -> None:
    assert Distribution(min_workers=least).worker_range(most) == expected


def test_it_is_the_same_behind_messages_and_rows() -> None:
    spec = tiny_spec(workers=2, distribution=replace(FULL, min_workers=1, activation_checkpointing=True))
    assert spec_from(spec_message(spec)) == spec
    assert TrainingSpec.from_json(spec.to_json()) == spec
    rows_of_before = {name: value for name, value in spec.to_json().items() if name != "distribution"}
    assert TrainingSpec.from_json(rows_of_before).distribution == Distribution()


def test_precision_is_that_of_the_device_unless_it_is_said() -> None:
    def precision(gpus: int, given: distribution_pb.Distribution.Precision = 0) -> Precision:  # type: ignore[assignment]
        message = pb.TrainingSpec(gpus_per_worker=gpus, distribution=distribution_pb.Distribution(precision=given))
        return spec_from(message).distribution.precision

    assert (precision(0), precision(1)) == (Precision.FLOAT32, Precision.BFLOAT16)
    assert precision(1, distribution_pb.Distribution.PRECISION_FLOAT32) is Precision.FLOAT32


def test_divided_state_counts_once_and_checkpointed_activations_little() -> None:
    spec = tiny_spec(workers=4, architecture=replace(TINY, layers=8))
    whole, divided = estimate(spec), estimate(replace(spec, distribution=FULL))
    parameters = whole.parameter_count
    # Sixteen bytes of state a parameter once instead of four times; four of the whole model at the beginning.
    assert whole.memory_bytes - divided.memory_bytes == parameters * (16 * 3 - 4 * 4)
    sparing = estimate(replace(spec, distribution=Distribution(activation_checkpointing=True)))
    assert sparing.memory_bytes < whole.memory_bytes
    assert sparing.seconds > whole.seconds
