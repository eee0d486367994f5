"""A run on two Ray nodes, of which one is lost and comes again: it goes on with what there is, on the same curve."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from libs.common.blobs import BlobStore
from libs.common.testing.ray import RunningRay, ray_head
from services.training.domain.distribution import Distribution
from services.training.domain.spec import Method
from services.training.engines.train import run
from tests.chaos import elastic_run
from tests.chaos.conftest import Trial
from tests.unit.training.samples import context, phase, rows, tiny_spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS, EVERY = 400, 5
# Relative; measured 0.0.
CURVE = 1e-4


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningRay]:
    """A head with room for one worker, that misses a node within two seconds."""
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv("RAY_health_check_timeout_ms", "500")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    with ray_head(num_cpus=1) as running:
        yield running


class Told:
    """A run as a process, and what it tells."""

    def __init__(self, folder: Path, ray: RunningRay) -> None:
        self.reports: list[dict[str, Any]] = []
        self._lines: queue.Queue[str] = queue.Queue()
        environment = {
            **os.environ,
            **ray.environment,
            "PYTHONPATH": os.pathsep.join(sys.path),
            # A group that was promised a node which is gone tries again after so long.
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
        }
        self._log = (folder / "run.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", elastic_run.__name__, str(folder), ray.address],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def until(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 150) -> dict[str, Any]:
        """The first report from now on that is wanted."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"it did not come; the last reports: {self.reports[-5:]}") from None
            self.reports.append(json.loads(line))
            if wanted(self.reports[-1]):
                return self.reports[-1]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Ray has a word to say about nodes that are gone.
            if line.startswith("{"):
                self._lines.put(line)


@pytest.fixture
def long(trial: Trial) -> None:
    """Nodes are missed and found again by clocks of Ray, which take minutes."""
    if trial.short:
        pytest.skip("`make chaos` loses nodes")


@pytest.mark.usefixtures("long")
def test_run_goes_on_with_the_nodes_that_there_are(tmp_path: Path, ray: RunningRay) -> None:
    store = BlobStore(f"file://{tmp_path}/blobs")
    fields = {"phases": (phase(Method.PRETRAIN, STEPS, learning_rate=1e-3),), "checkpoint_every": EVERY}
    alone = context(store, tiny_spec(**fields), rows(60))
    before = torch.get_num_threads()
    run(alone)
    torch.set_num_threads(before)
    elastic = tiny_spec(**fields, workers=2, distribution=Distribution(min_workers=1))
    (tmp_path / "spec.json").write_text(json.dumps({**alone.spec, "spec": elastic.to_json()}), encoding="utf-8")
    node = ray.join()
    told = Told(tmp_path, ray)
    try:
        told.until(lambda report: report.get("log") == "workers: 2, nodes: 2")
        told.until(lambda report: report.get("step", 0) >= 20)
        lost_at = max(report.get("checkpoint", 0) for report in told.reports)
        ray.lose(node)
        told.until(lambda report: report.get("log") == "workers: 1, nodes: 1")
        went_on = told.until(lambda report: "step" in report)["step"]
        # From the newest checkpoint: at most what was reported and not yet written is done again.
        assert lost_at < went_on
        ray.join()
        told.until(lambda report: report.get("log") == "workers: 2, nodes: 2")
        told.until(lambda report: "result" in report)
    finally:
        told.close()
    curve = {step: values["loss"] for _, step, values in alone.recorded.metrics}
    found = {report["step"]: report["loss"] for report in told.reports if "step" in report}
    assert found == pytest.approx(curve, rel=CURVE)
