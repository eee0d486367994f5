"""Fine-tuning at the door: what auto means, what a request may say, and what ids stand for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from argosy.common.v1 import task_pb2
from argosy.training.v1 import training_pb2

from services.gateway.clients import trainings as labels
from services.gateway.clients.trainings import Job
from services.gateway.domain import openai_names as names
from services.gateway.domain.fine_tuning import Hyperparameters, plan, usual_rate
from services.gateway.http.openai.errors import ParameterError
from services.gateway.http.openai.job_answers import (
    checkpoint_object,
    event_objects,
    event_sequence,
    job_object,
    results_csv,
)
from services.gateway.http.openai.job_parameters import parse_job
from services.gateway.http.openai.listing import Listing, parse_listing

JOB = "ftjob-0123456789abcdef01234567"
ASKED = {"model": "m", "training_file": "file-0123456789abcdef01234567"}


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "multiplier"),
    [
        (1, 25, 1, 0.05),
        (10, 10, 1, 0.05),
        (33, 3, 1, 0.05),
        (100, 3, 1, 0.05),
        (5_000, 3, 10, 0.1),
        (10_000, 2, 20, 0.1),
        (50_000, 1, 100, 0.2),
        (1_000_000, 1, 256, 0.2),
    ],
)
def test_auto_follows_the_number_of_rows(rows: int, epochs: int, batch: int, multiplier: float) -> None:
    found = plan(Hyperparameters(), rows, 1e-3)
    assert (found.n_epochs, found.batch_size, found.learning_rate_multiplier) == (epochs, batch, multiplier)
    assert found.learning_rate == pytest.approx(1e-3 * multiplier)
    # Each row is read so often, whatever remains of the last step.
    assert rows * epochs <= found.steps * batch < rows * epochs + batch


def test_what_a_caller_chooses_wins() -> None:
    found = plan(Hyperparameters(n_epochs=2, batch_size=8, learning_rate_multiplier=1.5), 21, 2e-3)
    assert (found.steps, found.steps_per_epoch, found.learning_rate) == (6, 3, pytest.approx(3e-3))
    assert plan(Hyperparameters(batch_size=200), 5, 1e-3).batch_size == 5
    assert plan(Hyperparameters(learning_rate_multiplier=1e4), 5, 1e-3).learning_rate == 1.0


def test_the_usual_learning_rate_falls_with_size() -> None:
    assert [usual_rate(size) for size in (10**6, 350 * 10**6, 7 * 10**9, 10**12)] == [6e-4, 3e-4, 1.2e-4, 0.6e-4]


def test_ids_say_what_they_stand_for() -> None:
    first, second = names.new_id("file", "acme users/a", "key"), names.new_id("file", "acme users/b", "key")
    assert first == names.new_id("file", "acme users/a", "key") != second
    assert names.new_id("file", "acme users/a", "") != names.new_id("file", "acme users/a", "")
    assert names.is_file(first)
    assert not names.is_file("file-../x")
    assert names.job_of_results(names.results_file(JOB)) == JOB
    model = names.FineTuned("base", "acme", "", JOB)
    assert str(model) == f"ft:base:acme::{JOB.removeprefix('ftjob-')}"
    assert names.parse_model(str(model)) == model
    assert model.model_version == f"orgs/acme/modelProjects/{JOB}/versions/1"
    assert names.is_tuned(model.model_version)
    assert not names.is_tuned("orgs/acme/modelProjects/m/versions/1")
    assert not names.is_tuned("")
    assert names.parse_model("ft:base:acme:a b:0123456789abcdef") is None


def test_hyper_parameters_stand_at_the_new_place_or_the_old() -> None:
    chosen = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    wanted = Hyperparameters(2, None, 0.5)
    method = {"type": "supervised", "supervised": {"hyperparameters": chosen}}
    assert parse_job({**ASKED, "method": method}).hyperparameters == wanted
    assert parse_job({**ASKED, "hyperparameters": chosen}).hyperparameters == wanted
    assert parse_job({**ASKED, "method": {"type": "supervised"}, "suffix": None}).hyperparameters == Hyperparameters()


def test_preferences_have_a_beta() -> None:
    chosen = {"n_epochs": 1, "beta": 0.3}
    asked = parse_job({**ASKED, "method": {"type": "dpo", "dpo": {"hyperparameters": chosen}}})
    assert (asked.method, asked.hyperparameters) == ("dpo", Hyperparameters(1, beta=0.3))
    assert plan(asked.hyperparameters, 100, 1e-3).beta == 0.3
    auto = parse_job({**ASKED, "method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": "auto"}}}})
    assert plan(auto.hyperparameters, 100, 1e-3).beta == 0.1


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"model": ""}, "model", "missing_required_parameter"),
        ({"training_file": 4}, "training_file", "invalid_type"),
        ({"suffix": "a:b"}, "suffix", "invalid_value"),
        ({"suffix": "a" * 65}, "suffix", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"integrations": [{"type": "wandb"}]}, "integrations", "unsupported_parameter"),
        ({"learning_rate": 1}, "learning_rate", "unknown_parameter"),
        (
            {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}},
            "method.dpo.hyperparameters.beta",
            "invalid_value",
        ),
        ({"method": {"type": "reinforcement"}}, "method.type", "unsupported_method"),
        ({"method": {"type": "magic"}}, "method.type", "invalid_value"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo", "invalid_field"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "invalid_value"),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", "invalid_type"),
        ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "invalid_value"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            "hyperparameters.learning_rate_multiplier",
            "invalid_value",
        ),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta", "unknown_parameter"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "all"}}}},
            "method.supervised.hyperparameters.n_epochs",
            "invalid_type",
        ),
        ({"method": {"type": "supervised"}, "hyperparameters": {}}, "hyperparameters", "invalid_field"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_field"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_field"),
    ],
)
def test_a_wrong_parameter_is_named(more: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(ParameterError) as refused:
        parse_job({**ASKED, **more})
    assert refused.value.metadata["field"] == param
    assert (refused.value.openai_code or refused.value.reason.lower()) == code


def test_what_a_list_is_asked_for() -> None:
    assert parse_listing(b"", usual=20, most=100) == Listing("", 20)
    assert parse_listing(b"limit=2&after=c", usual=20, most=100) == Listing("c", 2)
    for query in (
        b"limit=0",
        b"limit=x",
        b"limit=101",
        b"limit=%C2%B2",
        b"limit=" + b"9" * 5000,
        b"limit=1&limit=2",
        b"other=1",
        b"metadata[a]=b",
    ):
        with pytest.raises(ParameterError):
            parse_listing(query, usual=20, most=100)
    assert parse_listing(b"metadata%5Ba%5D=b", usual=1, most=1, metadata=True).others == {"metadata[a]": "b"}


def job(state: task_pb2.Task.State | None, **error: Any) -> Job:
    training = training_pb2.Training(
        name=f"orgs/acme/trainings/{JOB}",
        labels={
            labels.JOB_LABEL: JOB,
            labels.MODEL_LABEL: "chat",
            labels.BASE_LABEL: "packages",
            labels.SUFFIX_LABEL: "mine",
            labels.TRAINING_FILE_LABEL: "file-a",
            labels.VALIDATION_FILE_LABEL: "",
            labels.METHOD_LABEL: '{"type":"supervised","supervised":{"hyperparameters":{"n_epochs":1}}}',
            labels.METADATA_LABEL: "{}",
        },
        spec=training_pb2.TrainingSpec(phases=[training_pb2.Phase(steps=20)], seed=5),
    )
    training.create_time.FromSeconds(1000)
    if state is None:
        return Job(training)
    run = training_pb2.TrainingRun(
        name=f"{training.name}/runs/1", results={"tokens": 640.0, "sft.heldout_loss_after": 2.5}
    )
    if state == task_pb2.Task.STATE_SUCCEEDED:
        run.model_version = f"orgs/acme/modelProjects/{JOB}/versions/1"
    task = task_pb2.Task(state=state, error=task_pb2.TaskError(**error))
    task.end_time.FromSeconds(1100)
    return Job(training, run, task)


def points() -> list[task_pb2.TaskMetrics]:
    return [
        task_pb2.TaskMetrics(step=10, phase="sft", values={"loss": 4.0}, sequence=3),
        task_pb2.TaskMetrics(step=20, phase="sft", values={"loss": 3.0}, sequence=5),
    ]


def test_statuses_are_those_of_openai() -> None:
    states = {
        task_pb2.Task.STATE_CREATED: "queued",
        task_pb2.Task.STATE_QUEUED: "queued",
        task_pb2.Task.STATE_RUNNING: "running",
        task_pb2.Task.STATE_PAUSED: "paused",
        task_pb2.Task.STATE_SUCCEEDED: "succeeded",
        task_pb2.Task.STATE_FAILED: "failed",
        task_pb2.Task.STATE_CANCELLED: "cancelled",
    }
    assert {state: job_object(job(state), 1001)["status"] for state in states} == states
    # The two calls that begin a job are not one.
    assert job_object(job(None), 1001)["status"] == "validating_files"
    broken = job_object(job(None), 2000)
    assert (broken["status"], broken["error"]["code"]) == ("failed", "not_started")


def test_a_job_that_has_succeeded_names_its_model_and_results() -> None:
    found = job_object(job(task_pb2.Task.STATE_SUCCEEDED), 1200)
    assert found["fine_tuned_model"] == "ft:packages:acme:mine:0123456789abcdef01234567"
    assert found["result_files"] == [names.results_file(JOB)]
    assert (found["trained_tokens"], found["finished_at"], found["seed"]) == (640, 1100, 5)
    assert found["hyperparameters"] == {"n_epochs": 1}
    running = job_object(job(task_pb2.Task.STATE_RUNNING), 1001)
    assert running["fine_tuned_model"] is running["trained_tokens"] is running["finished_at"] is None


@pytest.mark.parametrize(
    ("error", "code", "param"),
    [
        ({"reason": "CONTENT_INVALID", "message": "Row 3"}, "invalid_training_file", "training_file"),
        (
            {"reason": "PREFLIGHT_FAILED", "metadata": {"check": "leakage"}},
            "invalid_validation_file",
            "validation_file",
        ),
        ({"reason": "TRAINING_DIVERGED"}, "training_diverged", None),
    ],
)
def test_a_failure_names_the_file_at_fault(error: dict[str, Any], code: str, param: str | None) -> None:
    found = job_object(job(task_pb2.Task.STATE_FAILED, **error), 1200)["error"]
    assert (found["code"], found["param"], found["message"]) == (code, param, error.get("message", ""))


def test_events_come_newest_first() -> None:
    logs = [task_pb2.TaskLog(severity="WARNING", body="one was cut", sequence=2)]
    done = job(task_pb2.Task.STATE_SUCCEEDED)
    events = event_objects(done, logs, points(), True, 1200)
    assert [event["level"] for event in events] == ["info", "info", "info", "warn", "info"]
    assert [event["type"] for event in events] == ["message", "metrics", "metrics", "message", "message"]
    assert events[1]["data"] == {"step": 20, "total_steps": 20, "train_loss": 3.0}
    assert len({event["id"] for event in events}) == 5
    assert "New fine-tuned model: ft:packages" in events[0]["message"]
    # A page further down does not begin with the end.
    assert event_objects(done, logs, points(), False, 1200) == events[1:]
    assert [event_sequence(done, event["id"]) for event in events] == [6, 5, 3, 2, 0]
    for wrong in ("", "ftevent-", "ftevent-x-1", events[0]["id"] + "x", events[0]["id"].replace("-6", "--1")):
        assert event_sequence(done, wrong) is None


async def test_results_are_a_table() -> None:
    done = job(task_pb2.Task.STATE_SUCCEEDED)
    assert results_csv(done, points()).decode().splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "10,4.00000,,,",
        "20,3.00000,,2.50000,",
    ]
    read: list[int] = []

    async def newest() -> AsyncIterator[task_pb2.TaskMetrics]:
        for point in reversed(points()):
            read.append(point.step)
            yield point

    assert await checkpoint_object(done, newest()) is None
    assert done.run is not None
    done.run.checkpoint.phase = "sft"
    checkpoint = await checkpoint_object(done, newest())
    assert checkpoint is not None
    # No more than the one that counts.
    assert read == [20]
    assert (checkpoint["step_number"], checkpoint["metrics"]["full_valid_loss"]) == (20, 2.5)
    assert checkpoint["fine_tuned_model_checkpoint"] == str(done.model)
