from __future__ import annotations

import json
from pathlib import Path

import pytest

from libs.common.blobs import BlobStore
from libs.common.testing import engines
from libs.compute.actor import CarrierContext
from libs.compute.context import EngineCancelled, EngineError, LocalContext, load_entrypoint


def test_an_engine_runs_without_ray(tmp_path: Path) -> None:
    spec = {"steps": 3, "seconds": 0, "marks": str(tmp_path / "marks"), "blobs": True}
    store = BlobStore(f"file://{tmp_path}/blobs")
    ctx = LocalContext(spec, blobs_write=store)
    result = engines.steps(ctx)
    assert store.read_sync(result["blob"]) == b"counted"
    assert [point[2] for point in ctx.recorded.metrics] == [{"value": 0.0}, {"value": 1.0}, {"value": 2.0}]
    assert ctx.recorded.progress[-1] == (1.0, "step 2")
    assert ctx.recorded.cost == {"rows": 3}
    assert ctx.recorded.checkpoints[-1] == {"step": 2}
    assert engines.steps(LocalContext(spec, blobs_write=store, attempt=2, resume={"step": 1}))["first"] == 2


def test_a_cancel_is_heard(tmp_path: Path) -> None:
    ctx = LocalContext(
        {"steps": 9, "seconds": 0, "marks": str(tmp_path / "marks")},
        cancel_when=lambda recorded: len(recorded.progress) == 4,
    )
    with pytest.raises(EngineCancelled):
        engines.steps(ctx)
    assert len(ctx.recorded.progress) == 4


def test_without_a_grant_there_is_no_store() -> None:
    with pytest.raises(EngineError) as error:
        _ = LocalContext({}).blobs_write
    assert error.value.reason == "GRANT_DENIED"


@pytest.mark.parametrize("path", ["", "nowhere:run", "json:nothing", "json"])
def test_an_unknown_entrypoint_is_an_engine_error(path: str) -> None:
    with pytest.raises(EngineError):
        load_entrypoint(path)


def job() -> dict[str, object]:
    return {"spec": {}, "attempt": 1, "resume": None, "write_grant": None, "traceparent": ""}


def test_events_wait_until_they_are_acknowledged() -> None:
    ctx = CarrierContext(job())
    for number in range(3):
        ctx.log(f"line {number}")
    first, complete = ctx.report(0)
    assert [event["body"] for event in first["events"]] == ["line 0", "line 1", "line 2"]
    assert complete
    assert ctx.report(0)[0]["events"] == first["events"], "asked again, told again"
    assert [event["body"] for event in ctx.report(2)[0]["events"]] == ["line 2"]
    assert ctx.report(3)[0]["events"] == []
    json.dumps(first)


def test_many_events_come_in_portions_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = CarrierContext(job())
    for number in range(700):
        ctx.metrics("train", number, loss=1.0)
    report, complete = ctx.report(0)
    assert (len(report["events"]), complete) == (500, False)
    report, complete = ctx.report(report["events"][-1]["cursor"])
    assert (len(report["events"]), complete) == (200, True)
    monkeypatch.setattr("libs.compute.actor._MOST_EVENTS", 10)
    for number in range(50):
        ctx.log(str(number))
    kept = [event["body"] for event in ctx.report(700)[0]["events"]]
    assert kept == [str(number) for number in range(40, 50)], "the oldest go first"


def test_progress_keeps_its_last_message_and_all_costs() -> None:
    ctx = CarrierContext(job())
    ctx.progress(0.2, "reading", rows=10)
    ctx.progress(1.7, tokens=5)
    assert ctx.report(0)[0]["progress"] == {"fraction": 1.0, "message": "reading", "cost": {"rows": 10, "tokens": 5}}


@pytest.mark.parametrize("bad", [object(), float("nan"), b"bytes"])
def test_a_checkpoint_must_be_json(bad: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        CarrierContext(job()).checkpoint({"bad": bad})


def test_a_metric_may_have_any_name() -> None:
    ctx = CarrierContext(job())
    values = {"phase": 1.0, "step": 2.0, "self": 3.0}
    ctx.metrics("train", 4, **values)
    told = ctx.report(0)[0]["events"][0]
    assert (told["phase"], told["step"], told["values"]) == ("train", 4, values)


def test_costs_that_json_lacks_are_left_out_and_metrics_are_kept() -> None:
    ctx = CarrierContext(job())
    ctx.metrics("train", 1, loss=float("inf"), rate=2.0)
    ctx.progress(float("nan"), rows=float("nan"))
    report, _ = ctx.report(0)
    assert report["events"][0]["values"] == {"loss": float("inf"), "rate": 2.0}
    assert report["progress"] == {"fraction": 0.0, "message": "", "cost": {}}
