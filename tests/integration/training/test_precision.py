"""What the engine does for GPUs, as far as a machine without one can tell."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError
from services.training.domain.distribution import Distribution, Precision
from services.training.domain.spec import Method
from services.training.engines.train import run
from tests.unit.training.preferences import context as preferences
from tests.unit.training.preferences import pairs
from tests.unit.training.samples import TEMPLATE, context, phase, rows, tiny_spec


def test_bfloat16_learns_what_single_precision_does_and_keeps_its_weights(tmp_path: Path) -> None:
    store = BlobStore(f"file://{tmp_path}/blobs")
    spec = tiny_spec(phases=(phase(Method.PRETRAIN, 20, learning_rate=3e-3),))
    half = replace(spec, distribution=Distribution(precision=Precision.BFLOAT16))
    before = torch.get_num_threads()
    whole, halved = (run(context(store, each, rows(60))) for each in (spec, half))
    torch.set_num_threads(before)
    losses = [each["results"]["pretrain.heldout_loss_after"] for each in (whole, halved)]
    # Measured: 4.4859 and 4.4854, from 5.9.
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.002)
    digest = next(file["sha256"] for file in halved["files"] if file["path"] == "model.safetensors")
    assert {tensor.dtype for tensor in load(store.read_sync(digest)).values()} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_run_that_needs_a_gpu_says_so(tmp_path: Path) -> None:
    store = BlobStore(f"file://{tmp_path}/blobs")
    with pytest.raises(EngineError, match=r"spec.gpus_per_worker needs a GPU") as caught:
        run(context(store, tiny_spec(gpus_per_worker=1), rows(30)))
    assert caught.value.reason == "PREFLIGHT_FAILED"


def test_dpo_and_its_reference_are_equal_at_first_in_bfloat16_too(tmp_path: Path) -> None:
    """Compared in two precisions, half of the pairs would look better or worse by rounding alone."""
    store = BlobStore(f"file://{tmp_path}/blobs")
    tuning = phase(Method.SFT, 5, answers=())
    preferring = phase(Method.DPO, 2, beta=0.1, learning_rate=0.003, prompt_template=TEMPLATE)
    half = Distribution(precision=Precision.BFLOAT16)
    before = torch.get_num_threads()
    results = run(preferences(store, tiny_spec(phases=(tuning, preferring), distribution=half), pairs(60)))["results"]
    torch.set_num_threads(before)
    assert results["dpo.first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert results["dpo.heldout_accuracy_before"] == 0.5
