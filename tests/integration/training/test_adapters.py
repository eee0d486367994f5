"""LoRA: it improves the task, trains only its matrices, resumes exactly, and comes out merged or beside its base."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError, EnginePaused, LocalContext
from services.training.domain.adapter import Adapter
from services.training.domain.estimate import adapter_parameters
from services.training.domain.spec import Method
from services.training.engines import adapters, train
from services.training.engines.group import Group
from services.training.engines.prepared import load_job
from services.training.engines.reports import TaskReports
from services.training.engines.start import bare, starting_model
from services.training.engines.worker import Worker
from tests.integration.training.families import base_version, commit
from tests.integration.training.test_families import lay_out
from tests.unit.training.samples import TINY, WORDS, context, phase, rows, tiny_spec

NAME = "orgs/acme/modelProjects/packages/versions/1"
LORA = Adapter(rank=4, alpha=8.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of several threads may differ in their last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(f"file://{tmp_path_factory.mktemp('blobs')}")


@pytest.fixture(scope="module")
def base(store: BlobStore) -> str:
    """A model that answers in the form of the task and knows nothing of it: its labels were drawn by lot."""
    lot = random.Random(3)
    content = [{**row, "label": lot.choice(sorted(WORDS))} for row in rows(120)]
    digest: str = train.run(context(store, tiny_spec(pretrain=15, sft=60), content))["manifest_digest"]
    return digest


def adapted(
    store: BlobStore, base: str, steps: int = 3, adapter: Adapter | None = LORA, **options: Any
) -> LocalContext:
    """A context that fine-tunes the base on the true labels."""
    spec = tiny_spec(phases=(phase(Method.SFT, steps, learning_rate=0.02),), adapter=adapter, checkpoint_every=6)
    ctx = context(store, spec, rows(120), **options)
    ctx.spec["base"] = {"grant": "", "manifest_digest": base, "name": NAME}
    return ctx


def paths(result: dict[str, Any]) -> set[str]:
    return {file["path"] for file in result["files"]}


@pytest.fixture(scope="module")
def learned(store: BlobStore, base: str) -> dict[str, Any]:
    return train.run(adapted(store, base, steps=60))


def test_adapter_learns_the_task(learned: dict[str, Any]) -> None:
    results = learned["results"]
    # Three labels, evenly: 0.33 by chance. Measured: from 0.33 to 1.00, the loss from 0.47 to 0.27.
    assert results["sft.heldout_exact_match_before"] < 0.5
    assert results["sft.heldout_exact_match_after"] > results["sft.heldout_exact_match_before"] + 0.4
    assert results["sft.heldout_loss_after"] < results["sft.heldout_loss_before"] - 0.1


def test_only_the_adapter_is_counted_and_written(learned: dict[str, Any]) -> None:
    # Rank 4 beside four matrices of 32 by 32 and three of 32 by 64.
    assert learned["parameter_count"] == 4 * (4 * 64 + 3 * 96) == adapter_parameters(TINY, LORA)
    assert learned["results"]["trained_parameters"] == learned["parameter_count"]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= paths(learned)
    assert not {"config.json", "model.safetensors"} & paths(learned)


def test_peft_reads_what_was_written(store: BlobStore, base: str, learned: dict[str, Any], tmp_path: Path) -> None:
    folder = lay_out(store, learned["manifest_digest"], tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == NAME
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8.0, "LORA")
    model: Any = AutoModelForCausalLM.from_pretrained(lay_out(store, base, tmp_path / "base"))
    ids = torch.arange(3, 30)[None]
    before = model(input_ids=ids).logits
    together = PeftModel.from_pretrained(model, folder)
    assert not torch.allclose(before, together(input_ids=ids).logits)
    with together.disable_adapter():
        assert torch.equal(before, together(input_ids=ids).logits)


def test_merged_model_says_what_the_adapter_says(store: BlobStore, base: str, tmp_path: Path) -> None:
    apart = train.run(adapted(store, base, steps=6))
    whole = train.run(adapted(store, base, steps=6, adapter=replace(LORA, merge=True)))
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= paths(whole)
    assert "adapter_config.json" not in paths(whole)
    assert whole["parameter_count"] > apart["parameter_count"] == whole["results"]["trained_parameters"]
    plain: Any = AutoModelForCausalLM.from_pretrained(lay_out(store, base, tmp_path / "base"))
    merged: Any = AutoModelForCausalLM.from_pretrained(lay_out(store, whole["manifest_digest"], tmp_path / "merged"))
    ids = torch.arange(3, 30)[None]
    assert (plain(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max() > 0.1
    adapter = PeftModel.from_pretrained(plain, lay_out(store, apart["manifest_digest"], tmp_path / "adapter"))
    torch.testing.assert_close(merged(input_ids=ids).logits, adapter(input_ids=ids).logits, rtol=0, atol=1e-5)


def test_weights_of_the_base_stay_bit_for_bit(store: BlobStore, base: str, tmp_path: Path) -> None:
    ctx = adapted(store, base, steps=6)
    spec = train.TrainingSpec.from_json(ctx.spec["spec"])
    plan = train.prepare(ctx, spec)
    (tmp_path / "job").mkdir()
    worker = Worker(load_job(store, plan, spec, tmp_path / "job"), Group(), TaskReports(ctx, plan), None)
    worker.run()
    own = load_file(lay_out(store, base, tmp_path / "base") / "model.safetensors")
    frozen = {
        name.replace(".base_layer", ""): parameter
        for name, parameter in bare(worker._model).named_parameters()
        if not parameter.requires_grad
    }
    assert frozen.keys() == own.keys()
    assert all(torch.equal(frozen[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resume_gives_the_same_curve(
    store: BlobStore, base: str, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.training.engines.worker.METRICS_EVERY", 1)
    monkeypatch.setattr("services.training.engines.worker.ASK_SECONDS", 0.0)
    adapter = replace(LORA, dropout=dropout)
    whole = adapted(store, base, steps=18, adapter=adapter)
    result = train.run(whole)
    stopped = adapted(store, base, 18, adapter, pause_when=lambda _: True)
    with pytest.raises(EnginePaused):
        train.run(stopped)
    checkpoint = stopped.recorded.checkpoints[-1]
    assert checkpoint["step"] == 6
    # A checkpoint has the matrices and not the base.
    weights = store.load_manifest_sync(checkpoint["manifest_digest"])["blobs"][0]
    assert weights["size"] < 3 * 4 * result["parameter_count"]
    again = adapted(store, base, 18, adapter, resume=checkpoint, attempt=2)
    resumed = train.run(again)
    assert resumed["manifest_digest"] == result["manifest_digest"]
    for name in ("heldout_loss_before", "heldout_loss_after", "heldout_exact_match_after", "first_loss"):
        assert resumed["results"][f"sft.{name}"] == pytest.approx(result["results"][f"sft.{name}"], abs=1e-6)
    curves = [{step: values["loss"] for _, step, values in ctx.recorded.metrics} for ctx in (whole, again)]
    assert sorted(curves[1]) == list(range(7, 19))
    assert curves[1] == pytest.approx({step: curves[0][step] for step in curves[1]}, abs=1e-6)


def test_dropout_leaves_something_out(store: BlobStore, base: str) -> None:
    one, two = (
        train.run(adapted(store, base, adapter=replace(LORA, dropout=dropout)))["manifest_digest"]
        for dropout in (0.0, 0.5)
    )
    assert one != two


def test_run_goes_on_from_an_adapter(store: BlobStore, base: str, learned: dict[str, Any]) -> None:
    """With an adapter in the spec its matrices are trained further; without one they are merged first."""
    after = learned["results"]["sft.heldout_loss_after"]
    for adapter in (LORA, None):
        ctx = adapted(store, base, steps=2, adapter=adapter)
        ctx.spec["base_adapter"] = {"grant": "", "manifest_digest": learned["manifest_digest"], "name": "x"}
        result = train.run(ctx)
        assert result["results"]["sft.heldout_loss_before"] == pytest.approx(after, abs=1e-5)
        assert ("adapter_config.json" in paths(result)) is (adapter is not None)


@pytest.mark.parametrize("family", ["qwen3", "glm", "baichuan"])
def test_every_family_takes_an_adapter(store: BlobStore, family: str, tmp_path: Path) -> None:
    digest = base_version(store, family)
    result = train.run(adapted(store, digest, adapter=replace(LORA, merge=True)))
    model: Any = AutoModelForCausalLM.from_pretrained(lay_out(store, result["manifest_digest"], tmp_path))
    assert result["parameter_count"] == sum(parameter.numel() for parameter in model.parameters())
    assert 0 < result["results"]["trained_parameters"] < result["parameter_count"] / 2


def test_bfloat16_base_is_frozen_in_its_precision(store: BlobStore, tmp_path: Path) -> None:
    digest = base_version(store, "llama", dtype="bfloat16")
    ctx = adapted(store, digest)
    spec = train.TrainingSpec.from_json(ctx.spec["spec"])
    job = load_job(store, train.prepare(ctx, spec), spec, tmp_path)
    model = bare(starting_model(spec, job.config, job.base))
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert train.run(ctx)["results"]["sft.last_loss"] > 0


def test_unknown_targets_are_named_with_the_known_ones(store: BlobStore, base: str) -> None:
    with pytest.raises(EngineError, match=r"no linear layer W_pack; it has down_proj, gate_proj, k_proj") as caught:
        train.run(adapted(store, base, adapter=replace(LORA, target_modules=("q_proj", "W_pack"))))
    assert (caught.value.reason, caught.value.metadata["field"]) == ("INVALID_FIELD", "spec.adapter.target_modules")


def test_chosen_targets_only(store: BlobStore, base: str) -> None:
    result = train.run(adapted(store, base, adapter=replace(LORA, target_modules=("q_proj", "v_proj"))))
    assert result["parameter_count"] == 4 * 2 * 64


def test_quantised_base_needs_a_gpu(store: BlobStore, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = adapted(store, base, adapter=replace(LORA, quantize_base_bits=4))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(EngineError, match="needs a GPU") as caught:
        train.run(ctx)
    assert (caught.value.reason, caught.value.metadata["check"]) == ("PREFLIGHT_FAILED", "quantize_base_bits")
    # Nothing was read or prepared before.
    assert ctx.recorded.progress == []
    with pytest.raises(EngineError, match="bitsandbytes"):
        adapters.quantisation(8)


@pytest.mark.parametrize(
    ("settings", "tensors", "expected"),
    [
        ({"peft_type": "IA3"}, {}, "of type IA3"),
        ({"use_dora": True}, {}, "sets use_dora"),
        ({"r": 8}, {}, "does not fit"),
        ({"target_modules": ["q_proj"]}, {}, "is not known"),
        (
            {},
            {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)},
            "lm_head.lora_A.default.weight is not known",
        ),
    ],
)
def test_broken_adapters_are_refused(
    store: BlobStore, base: str, learned: dict[str, Any], tmp_path: Path, settings: Any, tensors: Any, expected: str
) -> None:
    folder = lay_out(store, learned["manifest_digest"], tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text()) | settings
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({**load_file(folder / "adapter_model.safetensors"), **tensors}, folder / "adapter_model.safetensors")
    ctx = adapted(store, base, adapter=None)
    ctx.spec["base_adapter"] = {"grant": "", "manifest_digest": commit(store, folder), "name": "x"}
    with pytest.raises(EngineError, match=expected) as caught:
        train.run(ctx)
    assert caught.value.reason == "CONTENT_INVALID"
