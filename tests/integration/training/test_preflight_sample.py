"""The pre-flight looks at rows before anything is spent, in a process of its own: their lengths, and what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from argosy.training.v1 import training_pb2
from argosy.training.v1 import training_service_pb2 as pb

from services.training.engines.chat_template import own_template
from services.training.engines.tokenizer import CONVERSATION_TEMPLATE, tokenizer_files, train_tokenizer
from tests.integration.training.peers import TRAIN, Caller, FakeDataset, refusal, spec_of
from tests.integration.training.versions import apply
from tests.unit.training.samples import rows

NAME = "orgs/acme/trainings/packages"
TALKS = "orgs/acme/datasets/talks/versions/1"
CONFIG = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}


def talk(text: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


async def preflight(caller: Caller) -> pb.PreflightTrainingResponse:
    return await caller.PreflightTraining(pb.PreflightTrainingRequest(name=NAME))


async def test_lengths_are_guessed_where_the_tokenizer_is_still_to_be_learned(
    served: Caller, dataset: FakeDataset
) -> None:
    content = rows(4000)
    for number in (2, 7, 3999):
        content[number]["label"] = ""
    dataset.add(TRAIN, content)
    await served.project()
    await served.training(validation_version="")
    found = await preflight(served)
    sample = found.sample
    assert (sample.rows, sample.row_count) == (2000, 4000)
    assert 0 < sample.seconds < 20
    packed, answered = sample.lengths
    assert (packed.phase, answered.phase, packed.estimated, packed.cut_share) == ("pretrain", "sft", True, 0)
    characters = sum(len(row["text"]) for row in content) / len(content)
    assert packed.mean == pytest.approx(characters / 3.5 + 1, rel=0.05)
    assert sum(bucket.row_count for bucket in packed.buckets) == 2000
    assert packed.p95 <= packed.longest <= packed.buckets[-1].most_tokens
    # Rows are counted from 1, and taken from all over the version; the last one of the sample is no. 3,750.
    assert [(fault.row, fault.column, fault.blocking) for fault in sample.faults] == [
        (3, "label", False),
        (8, "label", False),
    ]
    assert ("template", False, "sft: row 3: label: is empty.") in [
        (finding.check, finding.blocking, finding.message) for finding in found.findings
    ]


async def test_tokens_and_template_are_those_of_the_base(served: Caller, dataset: FakeDataset) -> None:
    await served.project()
    await served.training()
    tokenizer = train_tokenizer([row["text"] for row in rows(60)], 400)
    files = tokenizer_files(tokenizer, 32, CONVERSATION_TEMPLATE)
    run = await served.RunTraining(pb.RunTrainingRequest(name=NAME))
    others = {path.removesuffix(".json"): content for path, content in files.items()}
    base = await apply(served, run, b"weights", config=json.dumps(CONFIG).encode(), **others)
    talks = [talk(row["text"], row["label"]) for row in rows(40)]
    dataset.add(TALKS, [{"messages": each} for each in talks])
    phase = training_pb2.Phase(
        method=training_pb2.Phase.METHOD_SFT, steps=4, batch_size=4, learning_rate=0.01, messages_column="messages"
    )
    spec = training_pb2.TrainingSpec(phases=[phase])
    update = pb.UpdateTrainingRequest(
        training=training_pb2.Training(
            name=NAME, dataset_version=TALKS, base_model_version=base.name, spec=spec, validation_version=""
        )
    )
    update.update_mask.paths.extend(["dataset_version", "validation_version", "base_model_version", "spec"])
    await served.UpdateTraining(update)
    (lengths,) = (await preflight(served)).sample.lengths
    rendered = [own_template().render([*each[:1], {**each[1], "weight": 1}]) for each in talks]
    counted = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in rendered]
    assert not lengths.estimated
    assert lengths.mean == pytest.approx(sum(counted) / 40)
    assert (lengths.longest, lengths.context_length) == (max(counted), 32)
    assert lengths.cut_share == pytest.approx(sum(count > 32 for count in counted) / 40)
    expected = [sum(low < count <= high for count in counted) for low, high in ((0, 16), (16, 32), (32, 64), (64, 128))]
    assert [bucket.row_count for bucket in lengths.buckets] == expected[: len(lengths.buckets)]

    # A conversation that cannot be learned stops a run, with its row and place, also behind the first hundred rows.
    broken: list[dict[str, Any]] = [{"messages": talk("q", "a")} for _ in range(300)]
    broken[200] = {"messages": [{"role": "bot", "content": "x"}]}
    broken[250] = {"messages": [{"role": "user", "content": "x"}]}
    dataset.add(TALKS, broken)
    found = await preflight(served)
    faults = [(fault.row, fault.column, fault.blocking) for fault in found.sample.faults]
    assert faults == [(201, "messages[0].role", True), (251, "messages", True)]
    assert found.findings[0].blocking
    assert found.findings[0].message.startswith("sft: row 201: messages[0].role: must be one of")
    assert (await preflight(served)).sample.lengths[0].mean > 0


async def test_a_look_that_takes_too_long_is_given_up(served: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.training.clients.samples._MOST_SECONDS", 0.05)
    await served.project()
    await served.training()
    found = await preflight(served)
    assert not found.HasField("sample")
    assert [(finding.check, finding.blocking) for finding in found.findings] == [("template", False)]
    assert "was not looked at within" in found.findings[0].message


async def test_pairs_of_texts_are_a_phase_of_messages(served: Caller) -> None:
    await served.project()
    dpo = training_pb2.Phase(
        method=training_pb2.Phase.METHOD_GRPO, steps=1, batch_size=2, learning_rate=0.01, messages_column="prompt"
    )
    wrong = await refusal(served.training(spec=spec_of(phases=[dpo])))
    assert "fine-tuning, DPO and reward models" in wrong.message
