"""MLflow's client in its own environment; the server is named by MLFLOW_TRACKING_URI. Prints JSON.

python mlflow_door_client.py batches 50      # points a second of log_batch, a thousand points a call
python mlflow_door_client.py scenario        # goes through what the client can do; the steps that went well
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sklearn.linear_model import LogisticRegression
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

POINTS, KEYS = 1000, 10


def batches(count: int) -> float:
    """Points a second of so many batches, the first one apart."""
    client = MlflowClient()
    mlflow.set_experiment("bench")
    run_id = client.create_run(client.get_experiment_by_name("bench").experiment_id).info.run_id
    start = 0.0
    for number in range(count + 1):
        if number == 1:
            start = time.perf_counter()
        first, now = number * POINTS // KEYS, int(time.time() * 1000)
        points = [Metric(f"m{at % KEYS}", at / 7, now, first + at // KEYS) for at in range(POINTS)]
        client.log_batch(run_id, metrics=points)
    seconds = time.perf_counter() - start
    history = client.get_metric_history(run_id, "m3")
    assert len(history) == (count + 1) * POINTS // KEYS, len(history)
    return count * POINTS / seconds


def refused(call: object, words: str) -> None:
    """The call must fail with these words."""
    try:
        call()  # type: ignore[operator]
    except MlflowException as error:
        assert words in str(error), error
        return
    raise AssertionError(f"not refused: {words}")


def tracking(client: MlflowClient) -> str:
    """Logs as programs do; the id of the run."""
    mlflow.set_experiment("My first experiment")
    with mlflow.start_run(run_name="one") as run:
        mlflow.log_params({"lr": 0.1, "model": "tree"})
        for step in range(20):
            mlflow.log_metric("train/loss", 1 / (step + 1), step=step)
        mlflow.log_metrics({"acc": 0.9, "bad": math.nan}, step=3)
        mlflow.set_tag("team", "nlp")
        with mlflow.start_run(run_name="child", nested=True):
            mlflow.log_metric("acc", 0.2)
    run_id = run.info.run_id
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1", "model": "tree"}
    assert found.data.metrics["train/loss"] == 0.05
    assert math.isnan(found.data.metrics["bad"])
    assert [one.value for one in client.get_metric_history(run_id, "train/loss")][:2] == [1.0, 0.5]
    refused(lambda: client.log_param(run_id, "lr", "0.2"), "cannot become '0.2'")
    children = mlflow.search_runs(filter_string=f"tags.mlflow.parentRunId = '{run_id}'", output_format="list")
    assert [one.info.run_name for one in children] == ["child"]
    for step, value in ((3, 3.0), (1, math.inf), (2, -math.inf)):
        client.log_metric(run_id, "unordered", value, step=step)
    assert [one.value for one in client.get_metric_history(run_id, "unordered")] == [math.inf, -math.inf, 3.0]
    client.log_batch(run_id, params=[Param(f"p{number}", str(number)) for number in range(100)])
    points = [Metric(f"m{at % KEYS}", at / 7, 1_790_000_000_000, at // KEYS) for at in range(POINTS)]
    client.log_batch(run_id, metrics=points, params=[Param("p", "1")], tags=[RunTag("t", "1")])
    client.delete_tag(run_id, "t")
    return run_id


def searching(client: MlflowClient) -> None:
    """Searches runs and experiments."""
    condition = "metrics.acc > 0.5 and params.model = 'tree' and status = 'FINISHED'"
    found = mlflow.search_runs(experiment_names=["My first experiment"], filter_string=condition)
    assert list(found["params.lr"]) == ["0.1"]
    everything = mlflow.search_runs(search_all_experiments=True, order_by=["metrics.acc DESC"], output_format="list")
    assert everything[0].info.run_name == "one"
    names, runs = ("page one", "page two"), []
    for name in names:
        mlflow.set_experiment(name)
        for number in range(5):
            with mlflow.start_run(run_name=f"{name} {number}"):
                mlflow.log_metric("order", number)
    ids = [client.get_experiment_by_name(name).experiment_id for name in names]
    token = None
    while not runs or token:
        page = client.search_runs(ids, order_by=["metrics.order ASC", "run_name DESC"], max_results=3, page_token=token)
        runs += [one.info.run_name for one in page]
        token = page.token
    assert runs == [f"{name} {number}" for number in range(5) for name in reversed(names)], runs
    client.delete_experiment(ids[0])
    assert len(client.search_runs(ids)) == 5
    client.restore_experiment(ids[0])
    assert len(client.search_runs(ids)) == 10
    experiment = client.get_experiment_by_name("My first experiment")
    client.set_experiment_tag(experiment.experiment_id, "k", "v")
    client.rename_experiment(experiment.experiment_id, "second name")
    assert [one.name for one in client.search_experiments(filter_string="name LIKE 'sec%'")] == ["second name"]
    client.delete_experiment(experiment.experiment_id)
    assert client.get_experiment(experiment.experiment_id).lifecycle_stage == "deleted"
    client.restore_experiment(experiment.experiment_id)
    assert client.get_experiment_by_name("nothing") is None


def changing(client: MlflowClient) -> None:
    """Resumes, ends, renames, deletes and restores a run."""
    # Where nobody chose an experiment.
    assert client.get_experiment(client.create_run("0").info.experiment_id).name == "Default"
    with mlflow.start_run(run_name="again") as run:
        pass
    with mlflow.start_run(run_id=run.info.run_id):
        mlflow.log_metric("x", 1)
    client.set_terminated(run.info.run_id, "KILLED")
    assert client.get_run(run.info.run_id).info.status == "KILLED"
    client.delete_run(run.info.run_id)
    assert client.get_run(run.info.run_id).info.lifecycle_stage == "deleted"
    client.restore_run(run.info.run_id)
    client.update_run(run.info.run_id, name="renamed")
    assert client.get_run(run.info.run_id).info.run_name == "renamed"


def artifacts(client: MlflowClient, run_id: str) -> None:
    """Files of a run, up and down."""
    large = os.urandom(20_000_000)
    Path("large.bin").write_bytes(large)
    client.log_artifact(run_id, "large.bin")
    client.log_dict(run_id, {"a": 1}, "conf/x.json")
    client.log_text(run_id, "hello", "conf/my file ü.txt")
    assert [one.path for one in client.list_artifacts(run_id)] == ["conf", "large.bin"]
    assert [one.path for one in client.list_artifacts(run_id, "conf")] == ["conf/my file ü.txt", "conf/x.json"]
    assert Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="large.bin")).read_bytes() == large
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="conf"))
    assert (folder / "my file ü.txt").read_text() == "hello"
    for path in ("tree/a.txt", "tree/deep/100%.txt", "tree/deep/er/b.txt"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(path)
    client.log_artifacts(run_id, "tree", "tree")
    assert [one.path for one in client.list_artifacts(run_id, "tree")] == ["tree/a.txt", "tree/deep"]
    back = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="tree"))
    assert (back / "deep" / "100%.txt").read_text() == "tree/deep/100%.txt"
    assert (back / "deep" / "er" / "b.txt").exists()


def autolog(client: MlflowClient) -> None:
    """scikit-learn with autolog, and a pickled model that is refused."""
    features, labels = np.random.default_rng(0).random((60, 3)), np.arange(60) % 2
    mlflow.autolog(log_models=False, silent=True)
    with mlflow.start_run(run_name="auto") as run:
        LogisticRegression(max_iter=50).fit(features, labels)
    found = client.get_run(run.info.run_id)
    assert "training_accuracy_score" in found.data.metrics, found.data.metrics
    assert found.data.params["max_iter"] == "50"
    mlflow.autolog(disable=True)
    with mlflow.start_run():
        model = LogisticRegression().fit(features, labels)
        refused(lambda: mlflow.sklearn.log_model(model, name="model"), "safetensors only")


def models(client: MlflowClient) -> None:
    """Registered models as far as they need no version."""
    client.create_registered_model("names")
    assert [one.name for one in client.search_registered_models("name LIKE 'na%'")] == ["names"]
    assert client.search_model_versions("name='names'") == []
    refused(lambda: client.get_model_version_by_alias("names", "champion"), "No such alias")
    client.update_registered_model("names", "What names mean")
    client.set_registered_model_tag("names", "team", "nlp")
    found = client.get_registered_model("names")
    assert (found.description, found.tags) == ("What names mean", {"team": "nlp"})
    client.delete_registered_model_tag("names", "team")
    refused(lambda: client.transition_model_version_stage("names", "1", "Production"), "life-cycle")
    refused(lambda: client.rename_registered_model("names", "other"), "not supported")
    client.delete_registered_model("names")
    refused(lambda: client.get_registered_model("names"), "No such registered model")


def tensorboard(client: MlflowClient, run_id: str) -> None:
    """What TensorBoard's own reader sees of a run."""
    name = client.get_run(run_id).data.tags["argosy.run"]
    url = f"{os.environ['MLFLOW_TRACKING_URI']}/v1/orgs/acme/runs:eventFiles?runs={name}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {os.environ['MLFLOW_TRACKING_TOKEN']}"})
    with urllib.request.urlopen(request) as answer, tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(io.BytesIO(answer.read())).extractall(folder)
        (file,) = Path(folder).rglob("*tfevents*")
        read = EventAccumulator(str(file.parent), size_guidance={"scalars": 0, "tensors": 0})
        read.Reload()
        assert "train/loss" in read.Tags()["scalars"], read.Tags()
        points = read.Scalars("train/loss")
    assert [point.step for point in points] == list(range(20))
    assert all(abs(point.value - 1 / (point.step + 1)) < 1e-6 for point in points)


def scenario() -> list[str]:
    """Everything in turn."""
    client = MlflowClient()
    run_id = tracking(client)
    searching(client)
    mlflow.set_experiment("second name")
    changing(client)
    artifacts(client, run_id)
    autolog(client)
    models(client)
    tensorboard(client, run_id)
    return ["tracking", "searching", "changing", "artifacts", "autolog", "models", "tensorboard"]


if __name__ == "__main__":
    print(json.dumps(batches(int(sys.argv[2])) if sys.argv[1] == "batches" else scenario()))
