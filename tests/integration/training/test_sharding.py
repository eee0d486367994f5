"""Divided weights (FSDP2) on two workers over gloo: the curve of one worker, and checkpoints that any number goes on
from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.training.domain.distribution import Distribution, Sharding
from services.training.domain.spec import TrainingSpec
from services.training.engines.launch import run_here
from services.training.engines.train import prepare
from tests.integration.training.ranks import Json, run_ranks
from tests.unit.training.samples import rows, tiny_spec, write_version

# Relative. Sums in another order differ in their last bits, and every step adds to that: measured 7e-7.
CURVE = 1e-5
# Absolute; where a gradient is nearly zero, AdamW makes a step of its sign: measured 3e-4,
# a thirtieth of one step.
WEIGHTS = 2e-3


class Runs:
    """One worker alone, and two in each way.

    Attributes:
        alone: losses of the undisturbed run by phase and step.
        weights: that it ended with.
    """

    def __init__(self, folder: Path) -> None:
        self.store = BlobStore(f"file://{folder}/blobs")
        self.spec = tiny_spec(pretrain=14, sft=14, checkpoint_every=5, probe=False)
        # One row more than two batches: at the end one of two workers has none.
        versions = {"train": rows(90), "validation": rows(65, seed=99)}
        given = {
            name: {"grant": "", "manifest_digest": write_version(self.store, content)}
            for name, content in versions.items()
        }
        self.given = {"spec": self.spec.to_json(), **given}
        ctx = self.context()
        self.plan = prepare(ctx, self.spec)
        result = run_here(ctx, self.spec, self.plan)
        self.alone, self.results, self.weights = losses(ctx), result["results"], self.read(result)
        middle = next(each for each in ctx.recorded.checkpoints if each["phase"] == "sft" and each["step"] == 6)
        sharded = replace(self.spec, workers=2, distribution=Distribution(Sharding.FULL))
        sparing = replace(sharded, distribution=Distribution(Sharding.FULL, activation_checkpointing=True))
        jobs = [
            self.job(replace(self.spec, workers=2)),
            self.job(sharded),
            self.job(sparing, {**middle, "plan": self.plan}),
        ]
        self.whole, self.divided, self.resumed = run_ranks(folder, self.plan, jobs)

    def context(self, resume: Json | None = None) -> LocalContext:
        return LocalContext(self.given, blobs_write=self.store, blobs_read=self.store, resume=resume)

    def job(self, spec: TrainingSpec, checkpoint: Json | None = None) -> Json:
        return {"spec": spec.to_json(), "checkpoint": checkpoint}

    def read(self, result: Json) -> dict[str, torch.Tensor]:
        return load(self.store.read_sync(result["weights"]["model.safetensors"]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    before = torch.get_num_threads()
    try:
        return Runs(tmp_path_factory.mktemp("ranks"))
    finally:
        torch.set_num_threads(before)


def losses(ctx: LocalContext) -> dict[tuple[str, int], float]:
    return {(name, step): values["loss"] for name, step, values in ctx.recorded.metrics}


def reported(found: Json) -> dict[tuple[str, int], float]:
    return {(name, step): values["loss"] for name, step, values in found["metrics"]}


def same(runs: Runs, result: Json) -> None:
    """Whether a run ended with the weights of the one that was left alone."""
    for name, tensor in runs.read(result).items():
        torch.testing.assert_close(tensor, runs.weights[name], rtol=0, atol=WEIGHTS)


def test_two_workers_learn_what_one_does(runs: Runs) -> None:
    assert reported(runs.whole) == pytest.approx(runs.alone, rel=CURVE)


def test_divided_weights_give_the_same_curve_and_model(runs: Runs) -> None:
    assert reported(runs.divided) == pytest.approx(runs.alone, rel=CURVE)
    same(runs, runs.divided["result"])
    for name in ("pretrain.heldout_loss_after", "sft.heldout_loss_after", "trained_parameters"):
        assert runs.divided["result"]["results"][name] == pytest.approx(runs.results[name], rel=CURVE)


def test_divided_run_goes_on_from_the_checkpoint_of_one_worker(runs: Runs) -> None:
    """With activations that are computed twice."""
    later = {key: loss for key, loss in runs.alone.items() if key[0] == "sft" and key[1] > 6}
    assert reported(runs.resumed) == pytest.approx(later, rel=CURVE)
    same(runs, runs.resumed["result"])


def test_one_worker_goes_on_from_the_checkpoint_of_divided_ones(runs: Runs) -> None:
    middle: Any = next(each for each in runs.divided["checkpoints"] if each["phase"] == "sft" and each["step"] == 6)
    ctx = runs.context(middle)
    before = torch.get_num_threads()
    result = run_here(ctx, runs.spec, runs.plan)
    torch.set_num_threads(before)
    later = {key: loss for key, loss in runs.alone.items() if key[0] == "sft" and key[1] > 6}
    assert losses(ctx) == pytest.approx(later, rel=CURVE)
    same(runs, result)
