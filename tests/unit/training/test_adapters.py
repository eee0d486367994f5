"""Rules of adapters and bases: what a spec may say, what a base tells, what it costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs.common.domain import DomainError
from services.training.domain.adapter import Adapter
from services.training.domain.bases import Base, adapter_of, architecture_of, fitted
from services.training.domain.card import model_card
from services.training.domain.estimate import Estimate, adapter_parameters, estimate
from services.training.domain.models import ModelFile, ModelVersion
from services.training.domain.run_load import RowFacts, Work
from services.training.domain.spec import Architecture, Method, TrainingSpec
from services.training.domain.trainings import TrainingRun
from tests.unit.factories import resource_fields
from tests.unit.training.samples import phase, tiny_spec

NAME = "orgs/acme/modelProjects/packages/versions/1"
# Qwen2.5-0.5B and GPT-2, as their config.json have them.
QWEN = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}
GPT2 = {"vocab_size": 50257, "n_embd": 768, "n_inner": None, "n_layer": 12, "n_head": 12, "n_positions": 1024}
LORA_CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["v_proj", "q_proj"]}


def base(**fields: Any) -> Base:
    usual: dict[str, Any] = {"name": NAME, "architecture": architecture_of(QWEN), "parameter_count": 494_032_768}
    return Base(**{**usual, **fields})


def adapted(**fields: Any) -> TrainingSpec:
    """What a caller gives who sets only these fields of the adapter: the rest is left to the base."""
    given: dict[str, Any] = {"rank": 0, "alpha": 0.0, **fields}
    return tiny_spec(phases=(phase(Method.SFT, 10),), adapter=Adapter(**given))


def test_shape_is_read_from_each_family() -> None:
    assert architecture_of(QWEN) == Architecture(151936, 896, 4864, 24, 14, 2, 32768)
    assert architecture_of(GPT2) == Architecture(50257, 768, 3072, 12, 12, 12, 1024)


@pytest.mark.parametrize("change", [{"hidden_size": 0}, {"hidden_size": "9"}, {"num_hidden_layers": True}])
def test_config_without_a_shape_is_named(change: dict[str, Any]) -> None:
    with pytest.raises(DomainError, match=next(iter(change))) as caught:
        architecture_of(QWEN | change)
    assert (caught.value.reason, caught.value.metadata["detail"]) == ("CONTENT_INVALID", "config.json")


def test_spec_takes_the_shape_of_its_base() -> None:
    spec = fitted(tiny_spec(), base(), {})
    assert spec.architecture == replace(architecture_of(QWEN), sequence_length=2048)
    again = fitted(spec, base(), {"hidden_size": 896, "sequence_length": 512})
    assert again.architecture.sequence_length == 512


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"hidden_size": 128}, "hidden_size is that of the base model version, 896"),
        ({"vocabulary_size": 4096}, "vocabulary_size is that of the base model version, 151936"),
        ({"sequence_length": 32769}, "at most the context of the base model version, 32768"),
    ],
)
def test_shape_of_a_base_is_not_up_to_the_caller(given: dict[str, int], message: str) -> None:
    with pytest.raises(DomainError, match=message) as caught:
        fitted(tiny_spec(), base(), given)
    assert caught.value.metadata["field"] == f"spec.architecture.{next(iter(given))}"


def test_adapter_gets_its_numbers() -> None:
    assert fitted(adapted(), base(), {}).adapter == Adapter(rank=16, alpha=32.0)
    assert fitted(adapted(rank=4), base(), {}).adapter == Adapter(rank=4, alpha=8.0)
    earlier = adapter_of(LORA_CONFIG)
    going_on = fitted(adapted(target_modules=("q_proj", "v_proj"), merge=True), base(adapter=earlier), {}).adapter
    assert going_on == Adapter(rank=8, alpha=16.0, target_modules=("q_proj", "v_proj"), merge=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 16}, "rank is that of the adapter that the run goes on with, 8"),
        ({"alpha": 32.0}, "alpha is that of the adapter that the run goes on with, 16"),
        ({"target_modules": ("k_proj",)}, "the run goes on with, q_proj, v_proj"),
    ],
)
def test_a_run_goes_on_with_the_same_matrices(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DomainError, match=message):
        fitted(adapted(**fields), base(adapter=adapter_of(LORA_CONFIG)), {})


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "LOHA"},
        {"r": 0},
        {"r": "8"},
        {"lora_alpha": 0},
        {"lora_alpha": float("nan")},
        {"target_modules": "all-linear"},
        {"target_modules": []},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 3}},
    ],
)
def test_only_plain_lora_is_read(change: dict[str, Any]) -> None:
    with pytest.raises(DomainError) as caught:
        adapter_of(LORA_CONFIG | change)
    assert caught.value.metadata["detail"] == "adapter_config.json"


def test_adapter_needs_a_base_and_quantising_needs_gpus() -> None:
    with pytest.raises(DomainError, match=r"spec.adapter needs a training.base_model_version"):
        adapted().check()
    adapted().check(based=True)
    quantised = adapted(quantize_base_bits=4)
    with pytest.raises(DomainError) as caught:
        quantised.check(based=True)
    assert caught.value.metadata["field"] == "spec.adapter.quantize_base_bits"
    replace(quantised, gpus_per_worker=1).check(based=True)


def test_spec_with_an_adapter_survives_json() -> None:
    spec = adapted(target_modules=("q_proj",))
    assert TrainingSpec.from_json(spec.to_json()) == spec
    old = {name: value for name, value in tiny_spec().to_json().items() if name != "adapter"}
    assert TrainingSpec.from_json(old) == tiny_spec()


def test_adapter_costs_no_gradients_and_moments_of_the_base() -> None:
    given = base()

    def guess(spec: TrainingSpec) -> Estimate:
        # Rows of one token: what is left is that of the parameters. And no checkpoint on the way.
        rows = Work(100, 0, (RowFacts(1.0, 1.0, 1.0, 4.0),) * len(spec.phases))
        return estimate(replace(spec, checkpoint_every=1000), given.parameter_count, rows)

    whole = guess(fitted(tiny_spec(), given, {}))
    spec = fitted(adapted(), given, {})
    lora = guess(spec)
    assert whole.trained_parameter_count == whole.parameter_count == lora.parameter_count == given.parameter_count
    # 24 layers, rank 16: q and o of 896 by 896, k and v of 896 by 128, three of 896 by 4864; as PEFT counts them.
    assert lora.trained_parameter_count == 24 * 16 * (2 * 1792 + 2 * 1024 + 3 * 5760) == 8_798_208
    saved = given.parameter_count * 12 - lora.trained_parameter_count * 16
    assert spec.adapter is not None
    same = guess(replace(spec, adapter=None))
    assert same.memory_bytes - lora.memory_bytes == pytest.approx(saved, rel=0.01)
    four = guess(replace(spec, adapter=replace(spec.adapter, quantize_base_bits=4)))
    assert lora.memory_bytes - four.memory_bytes == pytest.approx(given.parameter_count * (4 - 0.515625), abs=1)
    assert lora.seconds < same.seconds


def test_unknown_targets_are_counted_from_above() -> None:
    shape = architecture_of(QWEN)
    assert adapter_parameters(shape, Adapter(rank=2, target_modules=("gate_up_proj",))) == 24 * 2 * (896 + 2 * 4864)


def test_version_with_peft_files_is_an_adapter() -> None:
    file = ModelFile("adapter_config.json", "ab" * 32, 7)
    assert ModelVersion(**resource_fields(NAME), files=[file]).is_adapter
    assert not ModelVersion(**resource_fields(NAME), files=[replace(file, path="config.json")]).is_adapter


@pytest.mark.parametrize(
    ("merge", "what", "end"),
    [
        (False, "A LoRA adapter of rank 4 for a decoder of the architecture `qwen2` with 7", "kept beside the base"),
        (True, "A decoder of the architecture `qwen2` with 7", "added to the weights of the base"),
    ],
)
def test_card_tells_of_the_adapter(merge: bool, what: str, end: str) -> None:
    spec = tiny_spec(adapter=Adapter(rank=4, alpha=8.0, target_modules=("q_proj",), merge=merge))
    run = TrainingRun(**resource_fields("orgs/acme/trainings/t/runs/1"), spec=spec, base_model_version=NAME)
    card = model_card(run, NAME, "ab" * 32, 7, 32, {}, {}, "qwen2")
    assert what in card
    assert "LoRA of rank 4, alpha 8, beside `q_proj`" in card
    assert end in card
