"""The methods beyond next tokens on other people's models, with and without an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError, EnginePaused
from services.training.domain.adapter import Adapter
from services.training.domain.methods import Distillation, Method, RewardRule, Rollouts, RuleKind, Signal
from services.training.domain.spec import Phase, TrainingSpec
from services.training.engines.train import run
from tests.integration.training.families import base_version
from tests.unit.training.preferences import context, pairs
from tests.unit.training.samples import TEMPLATE, phase, tiny_spec

TEACHER = "orgs/acme/modelProjects/teacher/versions/1"
ROLLOUTS = Rollouts(group_size=2, max_new_tokens=4, rules=(RewardRule(RuleKind.MAX_TOKENS, 1, max_tokens=3),))
PHASES = {
    "dpo": {"method": Method.DPO, "beta": 0.1},
    "grpo": {"method": Method.GRPO, "beta": 0.04, "rollouts": ROLLOUTS, "batch_size": 2},
    "distill": {"method": Method.DISTILL, "distillation": Distillation(TEACHER)},
    "copied": {"method": Method.DISTILL, "distillation": Distillation(TEACHER, Signal.RESPONSES)},
}
ADAPTER = Adapter(rank=2, alpha=4.0, dropout=0.2)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(f"file://{tmp_path_factory.mktemp('blobs')}")


def method(name: str, steps: int = 3) -> Phase:
    given: dict[str, Any] = {"learning_rate": 0.01, "prompt_template": TEMPLATE, **PHASES[name]}
    return phase(given.pop("method"), steps, **given)


def trained(store: BlobStore, spec: TrainingSpec, family: str, teacher: str = "", **options: Any) -> dict[str, Any]:
    base = {"manifest_digest": base_version(store, family)}
    frozen = {TEACHER: {"manifest_digest": base_version(store, teacher or family)}}
    return run(context(store, spec, pairs(16), base=base, frozen=frozen, heldout=pairs(4, seed=9), **options))


def lay_out(store: BlobStore, result: dict[str, Any], folder: Path) -> Path:
    for entry in result["files"]:
        store.export_sync(entry["sha256"], folder / entry["path"])
    return folder


@pytest.mark.parametrize("family", ["qwen2", "glm"])
@pytest.mark.parametrize("name", ["dpo", "grpo", "distill"])
def test_a_method_teaches_a_foreign_base(store: BlobStore, name: str, family: str) -> None:
    results = trained(store, tiny_spec(phases=(method(name),)), family)["results"]
    figures = [key for key in results if key.startswith(f"{name}.heldout_") and key.endswith("_after")]
    assert len(figures) == len(method(name).heldout_figures)


@pytest.mark.parametrize("name", ["dpo", "grpo", "distill"])
def test_a_method_teaches_an_adapter_and_resumes_exactly(store: BlobStore, name: str, tmp_path: Path) -> None:
    """With dropout, which neither the reference nor what is drawn has."""
    spec = tiny_spec(phases=(method(name, 4),), adapter=ADAPTER, checkpoint_every=2)
    whole = trained(store, spec, "llama")
    assert {file["path"] for file in whole["files"]} >= {"adapter_config.json", "adapter_model.safetensors"}
    base = {"manifest_digest": base_version(store, "llama")}
    frozen = {TEACHER: base}
    cut = context(
        store,
        spec,
        pairs(16),
        base=base,
        frozen=frozen,
        heldout=pairs(4, seed=9),
        pause_when=lambda _: True,
    )
    with pytest.raises(EnginePaused):
        run(cut)
    resumed = trained(store, spec, "llama", resume=cut.recorded.checkpoints[-1], attempt=2)
    first, second = (
        load_file(lay_out(store, result, _made(tmp_path / str(number))) / "adapter_model.safetensors")
        for number, result in enumerate((whole, resumed))
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_a_reward_model_of_a_foreign_base_judges_its_answers(store: BlobStore, family: str, tmp_path: Path) -> None:
    spec = tiny_spec(phases=(phase(Method.REWARD, 2, prompt_template=TEMPLATE),))
    judge = trained(store, spec, family)
    theirs: Any = AutoModelForSequenceClassification.from_pretrained(lay_out(store, judge, tmp_path))
    assert judge["parameter_count"] == sum(parameter.numel() for parameter in theirs.parameters())
    rollouts = Rollouts(group_size=2, max_new_tokens=4, reward_version=TEACHER)
    asking = tiny_spec(phases=(phase(Method.GRPO, 1, batch_size=2, prompt_template=TEMPLATE, rollouts=rollouts),))
    base = {"manifest_digest": base_version(store, family)}
    result = run(context(store, asking, pairs(16), base=base, frozen={TEACHER: judge}, heldout=pairs(4, seed=9)))
    assert "grpo.heldout_reward_after" in result["results"]


def test_a_foreign_teacher_with_other_tokens_is_copied_and_not_imitated(store: BlobStore) -> None:
    with pytest.raises(EngineError, match="another vocabulary"):
        trained(store, tiny_spec(phases=(method("distill"),)), "llama", teacher="qwen2")
    with pytest.raises(EngineError, match="special tokens of its own"):
        frozen = {TEACHER: {"manifest_digest": base_version(store, "qwen2")}}
        run(context(store, tiny_spec(phases=(method("distill"),)), pairs(16), frozen=frozen))


def test_no_reward_model_is_a_base(store: BlobStore) -> None:
    judge = trained(store, tiny_spec(phases=(phase(Method.REWARD, 1, prompt_template=TEMPLATE),)), "llama")
    with pytest.raises(EngineError, match="is a reward model"):
        run(context(store, tiny_spec(phases=(method("dpo"),)), pairs(16), base=judge))
