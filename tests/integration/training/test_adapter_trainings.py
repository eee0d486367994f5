"""Bases and adapters over the wire: what a training takes from its base, and what a run makes of it; no long work."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from argosy.training.v1 import model_service_pb2, training_pb2
from argosy.training.v1 import training_service_pb2 as pb
from google.protobuf.field_mask_pb2 import FieldMask

from libs.common.blobs import BlobStore
from libs.common.clock import SYSTEM_CLOCK
from libs.common.tasks import store as tasks
from services.training.jobs.run import RunTasks
from tests.integration.training.conftest import training_service
from tests.integration.training.outside_models import tokenizer
from tests.integration.training.peers import Caller, FakeDataset, refusal, spec_of, training_of

NAME = "orgs/acme/trainings/lora"
CONFIG = {
    "model_type": "qwen2",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.fixture
async def served(mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str) -> AsyncIterator[Caller]:
    """An editor of acme, and the service itself."""
    async with training_service(mesh, tmp_path, database_url) as service:
        caller = Caller(mesh, service=service)
        yield caller
        await caller.close()


async def create(caller: Caller, base: str, training_id: str = "lora", **spec: Any) -> training_pb2.Training:
    """A training from a base; `spec` are fields of the spec, the architecture left out unless it is among them."""
    usual: dict[str, Any] = {"architecture": None, "adapter": adapter_of()}
    training = training_of(base_model_version=base, spec=spec_of(**{**usual, **spec}))
    request = pb.CreateTrainingRequest(parent="orgs/acme", training_id=training_id, training=training)
    return await caller.CreateTraining(request)


def adapter_of(**fields: Any) -> training_pb2.Adapter:
    return training_pb2.Adapter(method=training_pb2.Adapter.METHOD_LORA, **fields)


async def made(caller: Caller, training: str, files: dict[str, bytes]) -> training_pb2.ModelVersion:
    """A run of the training whose engine wrote these files: what `apply` makes of it."""
    assert caller.service is not None
    parts: Any = caller.service.app
    blobs: BlobStore = parts.blobs
    run = await caller.RunTraining(pb.RunTrainingRequest(name=training))
    entries = []
    for path, content in files.items():
        blob = await blobs.put(content)
        entries.append({"path": path, "sha256": blob.sha256, "size": blob.size})
    result = {
        "manifest_digest": await blobs.commit({"kind": "training.model", "blobs": entries}),
        "files": entries,
        "parameter_count": 30_000,
        "context_length": 64,
        "architecture": "qwen2",
        "results": {},
        "framework": {"torch": "2"},
    }
    kind = RunTasks(parts.database, blobs, parts.datasets, parts.signer, SYSTEM_CLOCK).kind()
    async with parts.database.system() as uow:
        answer = await kind.apply(await tasks.get(uow, run.task), result, uow)
    return await caller.GetModelVersion(model_service_pb2.GetModelVersionRequest(name=answer["model_version"]))


@pytest.fixture
async def base(served: Caller) -> training_pb2.ModelVersion:
    """A complete version of a Qwen."""
    await served.project()
    training = await served.training()
    return await made(
        served, training.name, {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": tokenizer()}
    )


async def test_training_takes_shape_and_numbers_of_its_base(served: Caller, base: training_pb2.ModelVersion) -> None:
    training = await create(served, base.name, architecture=training_pb2.Architecture(sequence_length=48))
    shape = training.spec.architecture
    assert (shape.vocabulary_size, shape.hidden_size, shape.layers, shape.key_value_heads) == (400, 32, 2, 2)
    assert shape.sequence_length == 48
    assert training.spec.adapter == adapter_of(rank=16, alpha=32)
    # What was answered may be sent back.
    again = pb.UpdateTrainingRequest(training=training, update_mask=FieldMask(paths=["spec"]))
    assert (await served.UpdateTraining(again)).spec == training.spec
    renamed = training_pb2.Training(name=NAME, display_name="x")
    request = pb.UpdateTrainingRequest(training=renamed, update_mask=FieldMask(paths=["display_name"]))
    assert (await served.UpdateTraining(request)).spec == training.spec


async def test_preflight_counts_what_learns(served: Caller, base: training_pb2.ModelVersion) -> None:
    await create(served, base.name)
    await create(served, base.name, "whole", adapter=None)
    lora, whole = [
        await served.PreflightTraining(pb.PreflightTrainingRequest(name=f"orgs/acme/trainings/{name}"))
        for name in ("lora", "whole")
    ]
    assert lora.parameter_count == whole.parameter_count == whole.trained_parameter_count == base.parameter_count
    # Two layers, rank 16: four matrices of 32 by 32, three of 32 by 64.
    assert lora.trained_parameter_count == 2 * 16 * (4 * 64 + 3 * 96)
    assert lora.memory_bytes > 0


async def test_impossible_adapters_name_their_field(served: Caller, base: training_pb2.ModelVersion) -> None:
    impossible: list[tuple[dict[str, Any], str]] = [
        ({"architecture": training_pb2.Architecture(hidden_size=64)}, "spec.architecture.hidden_size"),
        ({"architecture": training_pb2.Architecture(sequence_length=65)}, "spec.architecture.sequence_length"),
        ({"adapter": training_pb2.Adapter()}, "adapter.method"),
        ({"adapter": adapter_of(rank=2000)}, "adapter.rank"),
        ({"adapter": adapter_of(dropout=1)}, "adapter.dropout"),
        ({"adapter": adapter_of(quantize_base_bits=3)}, "adapter.quantize_base_bits"),
        ({"adapter": adapter_of(quantize_base_bits=4)}, "spec.adapter.quantize_base_bits"),
        ({"adapter": adapter_of(target_modules=["a b"])}, "adapter.target_modules"),
    ]
    for spec, field in impossible:
        error = await refusal(create(served, base.name, **spec))
        assert error.reason == "INVALID_FIELD"
        assert field in error.metadata["field"]


async def test_adapter_without_a_base_is_refused(served: Caller, base: training_pb2.ModelVersion) -> None:
    error = await refusal(create(served, ""))
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "spec.adapter")


async def test_bases_that_tell_nothing_are_refused(served: Caller, base: training_pb2.ModelVersion) -> None:
    await create(served, base.name)
    silent: list[tuple[dict[str, bytes], str]] = [
        ({"model.safetensors": b"x"}, "config.json of orgs/acme/modelProjects/packages/versions/2 is missing"),
        ({"config.json": b"{"}, "is not JSON"),
        ({"config.json": b"[]"}, "is no JSON object"),
        ({"config.json": b"{}"}, "has no vocab_size"),
        ({"config.json": b" " * (1 << 21)}, "1,048,576 at most"),
        ({"adapter_config.json": b'{"peft_type": "IA3"}'}, "is of type IA3, not LORA"),
    ]
    for files, message in silent:
        odd = await made(served, NAME, files)
        error = await refusal(create(served, odd.name, "other"))
        assert error.reason == "CONTENT_INVALID"
        assert message in error.message


async def test_adapter_belongs_on_a_complete_version(served: Caller, base: training_pb2.ModelVersion) -> None:
    """Also one that was trained from an adapter; the run keeps both parents."""
    await create(served, base.name, adapter=adapter_of(rank=4, target_modules=["q_proj"]))
    files = {"adapter_config.json": json.dumps(LORA).encode(), "adapter_model.safetensors": b"x"}
    first = await made(served, NAME, files)
    assert first.base_model_version == base.name
    training = await create(served, first.name, "more")
    assert training.spec.adapter == adapter_of(rank=4, alpha=8, target_modules=["q_proj"])
    second = await made(served, training.name, files)
    assert second.base_model_version == base.name
    parents = {parent.relation: parent.name for parent in second.lineage.parents}
    assert parents["fine_tuned_from"] == first.name
    assert parents["adapted_from"] == base.name
    error = await refusal(create(served, first.name, "other", adapter=adapter_of(rank=8)))
    assert "spec.adapter.rank is that of the adapter that the run goes on with, 4" in error.message


async def test_merged_version_is_complete(served: Caller, base: training_pb2.ModelVersion) -> None:
    await create(served, base.name, adapter=adapter_of(merge=True))
    version = await made(served, NAME, {"config.json": json.dumps(CONFIG).encode()})
    assert version.base_model_version == base.name
    assert "added to the weights of the base" in version.model_card
    assert (await create(served, version.name, "more")).spec.architecture.hidden_size == 32
