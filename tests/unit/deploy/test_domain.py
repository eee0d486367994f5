"""Work orders, deployments, replicas and gates: what is allowed, what is refused, and that every step is kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from libs.common.domain import DomainError, Secrecy
from services.deploy.domain import deployment as d
from services.deploy.domain import replica as r
from services.deploy.domain import work_order as w
from services.deploy.domain.deployment import Deployment, Revision
from services.deploy.domain.endpoint import endpoints
from services.deploy.domain.gate import Gate, ModelVersion, evidence
from services.deploy.domain.plan import MAX_STARTS, plan
from services.deploy.domain.replica import Replica
from services.deploy.domain.spec import Spec
from services.deploy.domain.transitions import Stateful
from services.deploy.domain.work_order import WorkOrder

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def times() -> dict[str, Any]:
    return {"uid": "u", "create_time": NOW, "update_time": NOW}


def order(state: str = w.PENDING, name: str = "o1") -> WorkOrder:
    return WorkOrder(
        **times(),
        name=f"orgs/acme/workOrders/{name}",
        creator="users/alice",
        state=state,
        model_version="v1",
        deployment_id="docs",
        spec=Spec(replicas=2),
    )


def revision(name: str, replicas: int = 2) -> Revision:
    return Revision(work_order=name, model_version=f"model-{name}", model_digest="d", spec=Spec(replicas=replicas))


def deployment(state: str = d.STARTING, current: str = "", target: str = "", replicas: int = 2) -> Deployment:
    return Deployment(
        **times(),
        name="orgs/acme/deployments/docs",
        state=state,
        current=revision(current, replicas) if current else None,
        target=revision(target, replicas) if target else None,
    )


def replica(work_order: str, state: str = r.READY, **fields: Any) -> Replica:
    values: dict[str, Any] = {
        "deployment": "orgs/acme/deployments/docs",
        "work_order": work_order,
        "state": state,
    } | fields
    return Replica(**times(), name="orgs/acme/replicas/x", **values)


def refused(reason: str, call: Any, *args: Any) -> DomainError:
    with pytest.raises(DomainError) as caught:
        call(*args)
    assert caught.value.reason == reason
    return caught.value


# Work orders.

ORDER_STATES = ("", w.PENDING, w.REJECTED, w.APPROVED, w.ROLLING_OUT, w.SUCCEEDED, w.FAILED, w.CANCELLED)
ORDER_STEPS = {
    "submit": (lambda o: o.submit(NOW), {""}, w.PENDING),
    "approve": (lambda o: o.approve("users/bob", "", NOW), {w.PENDING}, w.APPROVED),
    "reject": (lambda o: o.reject("users/bob", "", NOW), {w.PENDING}, w.REJECTED),
    "start": (lambda o: o.start("s", NOW), {w.APPROVED, w.FAILED, w.CANCELLED}, w.ROLLING_OUT),
    "succeed": (lambda o: o.succeed("s", NOW), {w.ROLLING_OUT}, w.SUCCEEDED),
    "fail": (lambda o: o.fail("s", "why", NOW), {w.APPROVED, w.ROLLING_OUT}, w.FAILED),
    "cancel": (lambda o: o.cancel("s", "why", NOW), {w.APPROVED, w.ROLLING_OUT}, w.CANCELLED),
}


@pytest.mark.parametrize("state", ORDER_STATES)
@pytest.mark.parametrize("step", ORDER_STEPS)
def test_every_step_of_a_work_order(step: str, state: str) -> None:
    move, allowed, result = ORDER_STEPS[step]
    changed = order(state)
    if state not in allowed:
        error = refused("STATE_CONFLICT", move, changed)
        assert error.metadata == {"name": changed.name, "state": state, "wanted": result}
        assert (changed.state, changed.pending) == (state, [])
        return
    move(changed)
    assert changed.state == result
    (kept,) = changed.pending
    assert (kept.from_state, kept.to_state, kept.model_version, kept.time) == (state, result, "v1", NOW)


def test_nobody_approves_his_own_order() -> None:
    own = order()
    refused("SELF_APPROVAL", own.approve, "users/alice", "", NOW)
    assert own.state == w.PENDING
    own.reject("users/alice", "a mistake", NOW)
    assert own.state == w.REJECTED


def test_a_decision_says_who_when_and_why() -> None:
    decided = order()
    decided.approve("users/bob", "good", NOW)
    assert (decided.decider, decided.decide_reason, decided.decide_time) == ("users/bob", "good", NOW)
    assert decided.deployment == "orgs/acme/deployments/docs"


# Gates.


def model(state: str = "APPROVED", *gates: Gate) -> ModelVersion:
    return ModelVersion(name="m", state=state, manifest_digest="d1", gates=gates, secrecy=Secrecy.SECRET)


def gate(*, is_open: bool = True, digest: str = "d1", name: str = "release") -> Gate:
    return Gate(gate=name, open=is_open, model_digest=digest, evaluation="e", rule="r", reason="")


def test_an_open_gate_of_these_files_is_evidence() -> None:
    assert evidence(model("APPROVED", gate())).evaluation == "e"


@pytest.mark.parametrize(
    "version",
    [
        model(),
        model("REGISTERED", gate()),
        model("REJECTED", gate()),
        model("ARCHIVED", gate()),
        model("APPROVED", gate(is_open=False)),
        model("APPROVED", gate(digest="d2")),
        model("APPROVED", gate(digest="")),
        model("APPROVED", gate(), gate(is_open=False, name="safety")),
    ],
)
def test_anything_else_is_shut(version: ModelVersion) -> None:
    error = refused("GATE_SHUT", evidence, version)
    assert set(error.metadata) == {"model_version", "gate", "reason"}
    assert error.metadata["reason"]


# Deployments.


def test_the_life_of_a_deployment() -> None:
    docs = Deployment(**times(), name="orgs/acme/deployments/docs")
    docs.roll_out(revision("o1"), "s", NOW)
    docs.switch(2, "s", NOW)
    docs.roll_out(revision("o2"), "s", NOW)
    assert (docs.state, docs.current) == (d.LIVE, revision("o1"))
    docs.switch(2, "s", NOW)
    assert docs.observe(1, "s", NOW)
    assert not docs.observe(1, "s", NOW)
    assert docs.observe(2, "s", NOW)
    assert docs.stop("done", "users/bob", NOW)
    assert not docs.stop("again", "users/bob", NOW)
    assert not docs.observe(1, "s", NOW)
    docs.roll_out(revision("o3"), "s", NOW)
    docs.abandon("no memory", "s", NOW)
    steps = [(step.from_state, step.to_state, step.work_order) for step in docs.pending]
    assert steps == [
        ("", d.STARTING, "o1"),
        (d.STARTING, d.LIVE, "o1"),
        (d.LIVE, d.LIVE, "o2"),
        (d.LIVE, d.DEGRADED, "o2"),
        (d.DEGRADED, d.LIVE, "o2"),
        (d.LIVE, d.STOPPED, "o2"),
        (d.STOPPED, d.STARTING, "o3"),
        (d.STARTING, d.FAILED, "o3"),
    ]


def test_what_is_live_survives_an_abandoned_roll_out() -> None:
    docs = deployment(d.LIVE, "o1", "o2")
    docs.abandon("broken", "s", NOW)
    assert (docs.state, docs.current, docs.target, docs.pending) == (d.LIVE, revision("o1"), None, [])


@pytest.mark.parametrize("kind", [WorkOrder, Deployment])
def test_a_machine_has_no_way_out_of_unknown_states(kind: type[Stateful]) -> None:
    unknown = kind(**times(), name="orgs/acme/x/y", state="ODD")
    refused("STATE_CONFLICT", lambda: unknown._move("LIVE", actor="s", now=NOW))


# Plans.


def test_new_replicas_are_asked_for() -> None:
    steps = plan(deployment(target="o1"), [replica("o1", r.STARTING)])
    assert ([made.work_order for made in steps.create], steps.switch) == (["o1"], False)


def test_the_switch_waits_for_every_replica() -> None:
    docs = deployment(d.LIVE, "o1", "o2")
    old = [replica("o1"), replica("o1")]
    early = plan(docs, [*old, replica("o2"), replica("o2", r.STARTING)])
    assert (early.switch, early.stop, early.create) == (False, [], [])
    assert plan(docs, [*old, replica("o2"), replica("o2")]).switch


def test_the_old_go_after_the_switch() -> None:
    old = [replica("o1"), replica("o1", stopping=True)]
    steps = plan(deployment(d.LIVE, "o2"), [*old, replica("o2"), replica("o2")])
    assert steps.stop == old[:1]
    assert steps.ready == 2


def test_a_target_that_cannot_come_up_is_abandoned() -> None:
    docs = deployment(d.LIVE, "o1", "o2")
    old = [replica("o1"), replica("o1")]
    assert plan(docs, [*old, replica("o2", r.FAILED, message="no GPU")]).abandon == "no GPU"
    tired = replica("o2", r.STARTING, failures=MAX_STARTS, message="died")
    assert plan(docs, [*old, tired]).abandon == "died"


def test_what_serves_is_never_abandoned_but_tried_again() -> None:
    broken = replica("o1", r.FAILED)
    steps = plan(deployment(d.DEGRADED, "o1"), [replica("o1"), broken])
    assert (steps.retry, steps.create, steps.abandon, steps.ready) == ([broken], [], "", 1)


@pytest.mark.parametrize("state", [d.STOPPED, d.FAILED])
def test_nothing_is_left_of_what_has_ended(state: str) -> None:
    left = [replica("o1"), replica("o1", r.STARTING)]
    docs = deployment(state, "o1")
    assert plan(docs, left).stop == left
    assert not plan(docs, []).changes(docs)


# Replicas.


def test_back_off_grows_to_half_a_minute_and_starts_anew_when_ready() -> None:
    tried = replica("o1", r.STARTING)
    pauses = []
    for _ in range(9):
        tried.lost("died", NOW)
        assert tried.retry_time is not None
        pauses.append((tried.retry_time - NOW).total_seconds())
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert not tried.may_start(NOW)
    assert tried.may_start(NOW + timedelta(seconds=30))
    tried.became_ready("a:1", 128, NOW)
    tried.lost("died", NOW)
    assert tried.retry_time == NOW + timedelta(seconds=0.5)
    assert tried.restarts == 10


def test_a_lease_ends_and_cannot_be_renewed_then() -> None:
    leased = replica("", deployment="", lease_expire_time=NOW + timedelta(seconds=10))
    leased.renew(20, NOW + timedelta(seconds=9))
    assert not leased.expired(NOW + timedelta(seconds=28))
    assert leased.expired(NOW + timedelta(seconds=29))
    refused("NOT_FOUND", leased.renew, 20, NOW + timedelta(seconds=29))
    leased.stop("released", NOW)
    refused("NOT_FOUND", leased.renew, 20, NOW)


# Endpoints.


def test_endpoints_are_the_ready_replicas_of_what_is_served() -> None:
    docs = deployment(d.DEGRADED, "o1", "o2")
    found = endpoints([docs], [replica("o1", address="a:1", context_length=64), replica("o2", address="b:2")])
    (endpoint,) = found
    assert (endpoint.addresses, endpoint.model_version, endpoint.context_length) == (("a:1",), "model-o1", 64)


def test_a_deployment_without_replicas_is_known_but_empty() -> None:
    (endpoint,) = endpoints([deployment(d.DEGRADED, "o1")], [])
    assert endpoint.addresses == ()
    assert endpoints([deployment(d.STARTING, target="o1")], []) == ()


# Specs.


def test_what_is_left_open_gets_defaults() -> None:
    spec = Spec(runtime="", replicas=0, cpus=0, max_concurrency=0).completed()
    assert (spec.runtime, spec.replicas, spec.cpus, spec.max_concurrency) == ("vllm", 1, 1.0, 32)
    assert spec.kv_cache_bytes == 64 << 20
    assert Spec(gpus=1).completed().kv_cache_bytes == 0
    refused("INVALID_FIELD", Spec(gpus=float("inf")).completed)
