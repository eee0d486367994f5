"""What runs were to cost and did cost, and whether there is quota for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from argosy.training.v1 import training_service_pb2 as pb

from libs.common.blobs import BlobStore
from services.training.domain.estimate import Rates, estimate, work_of
from services.training.domain.preflight import DataFacts
from services.training.domain.spec import Architecture, Method, TrainingSpec
from services.training.engines import train
from services.training.engines.measuring import measure_rates, peak_bytes
from services.training.store.machine_rates import MachineRates
from tests.integration.training.peers import Caller, refusal, spec_of
from tests.quota import RoomForAll
from tests.unit.training.samples import context, phase, rows, tiny_spec

NAME = "orgs/acme/trainings/packages"
SMALL = Architecture(vocabulary_size=600, hidden_size=96, intermediate_size=256, layers=3, heads=2, key_value_heads=2)


def app(caller: Caller) -> Any:
    assert caller.service is not None
    return caller.service.app


async def found(caller: Caller) -> list[tuple[str, bool, str]]:
    answer = await caller.PreflightTraining(pb.PreflightTrainingRequest(name=NAME))
    return [(each.check, each.blocking, each.message) for each in answer.findings if each.check == "quota"]


async def test_what_no_quota_allows_is_refused_before_a_worker_starts(served: Caller, quota: RoomForAll) -> None:
    await served.project()
    await served.training()
    assert await found(served) == []
    quota.impossible = "it needs 2 cores, and orgs/acme may use 1"
    text = "There is no quota for this: it needs 2 cores, and orgs/acme may use 1."
    assert await found(served) == [("quota", True, text)]
    error = await refusal(served.RunTraining(pb.RunTrainingRequest(name=NAME)))
    assert (error.reason, error.metadata["check"]) == ("PREFLIGHT_FAILED", "quota")
    assert not quota.held


async def test_a_run_that_has_to_wait_is_warned_and_queued(served: Caller, quota: RoomForAll) -> None:
    await served.project()
    await served.training()
    quota.waiting_for = "1 of 1 cores of orgs/acme are used by runs/1"
    assert await found(served) == [("quota", False, f"A run has to wait for quota: {quota.waiting_for}.")]
    run = await served.RunTraining(pb.RunTrainingRequest(name=NAME))
    estimated = run.costs.estimate
    assert estimated.seconds > 0
    assert estimated.memory_bytes > 0
    # Two workers of one thread.
    assert estimated.cpu_hours == pytest.approx(2 * estimated.seconds / 3600)
    assert not run.costs.HasField("actual")
    assert run.costs.seconds_ratio == 0
    preflight = await served.PreflightTraining(pb.PreflightTrainingRequest(name=NAME))
    assert preflight.cost == estimated


async def test_a_run_is_queued_although_identity_is_away(served: Caller, quota: RoomForAll) -> None:
    """Whether there is room is decided when it starts."""
    await served.project()
    await served.training()
    quota.away = True
    ((_, blocking, message),) = await found(served)
    assert not blocking
    assert "Nobody could be asked" in message
    await served.RunTraining(pb.RunTrainingRequest(name=NAME))


async def test_what_runs_measured_is_expected_of_the_next(served: Caller) -> None:
    """Half as fast as the reference machine; then a measurement that is as fast counts for a quarter."""
    await served.project()
    # Long enough that starting the workers is nothing.
    await served.training(spec=spec_of(pretrain=1_000_000, checkpoint_every=1_000_000))

    async def seconds() -> float:
        return (await served.PreflightTraining(pb.PreflightTrainingRequest(name=NAME))).seconds

    own, usual = app(served), await seconds()
    for rates, expected in ((Rates(45e9, 75e9, 2.4e-6), 2.0), (Rates(), 2.0**0.75)):
        async with own.database.system() as uow:
            await MachineRates(uow).keep(1, rates, own.clock.now())
            await uow.commit()
        assert await seconds() == pytest.approx(expected * usual, rel=0.1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "spec",
    [
        tiny_spec(phases=(phase(Method.PRETRAIN, 30),), architecture=SMALL, probe=False),
        tiny_spec(phases=(phase(Method.SFT, 40),), architecture=SMALL),
    ],
    ids=["pretrain", "sft"],
)
def test_estimates_are_of_the_size_of_the_actual(tmp_path: Path, spec: TrainingSpec) -> None:
    """Wide margins, as the machine does other things too; `make bench-estimates` has the narrow ones."""
    content: list[dict[str, Any]] = rows(400)
    rates = Rates(**measure_rates())
    facts = [
        DataFacts("dataset_version", "d", 400, {"text": "string", "label": "string"}, content[:100]),
        DataFacts("validation_version", "v", 30, {}, ()),
    ]
    guess = estimate(spec, work=work_of(spec, facts), rates=rates)
    result = train.run(context(BlobStore(f"file://{tmp_path}"), spec, content))
    usage = result["usage"]
    # Seen: 0.5 to 1.5 of the time.
    assert 0.2 < guess.seconds / usage["seconds"] < 5
    assert guess.tokens == pytest.approx(result["tokens"], rel=0.4)
    # The process of the tests holds more than a carrier, and what earlier tests held counts.
    # The kernel adds up the pages of each thread in its own time.
    assert usage["memory_bytes"] <= peak_bytes() + (1 << 20)
    assert 0.2 < guess.memory_bytes / usage["memory_bytes"] < 2
    assert min(usage["rates"].values()) > 0
