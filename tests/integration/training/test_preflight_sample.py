"""The pre-flight looks at rows before anything is spent, in a process of its own: their lengths, and what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from argosy.training.v1 import model_service_pb2, training_pb2
from argosy.training.v1 import training_service_pb2 as pb

from services.training.engines.chat_template import own_template
from services.training.engines.order import row_order
from services.training.engines.tokenizer import CONVERSATION_TEMPLATE, tokenizer_files, train_tokenizer
from tests.integration.training.peers import PROJECT, TRAIN, Caller, FakeDataset, refusal, spec_of
from tests.integration.training.versions import apply
from tests.unit.training.samples import rows

NAME = "orgs/acme/trainings/packages"
TALKS = "orgs/acme/datasets/talks/versions/1"
HELD_TALKS = "orgs/acme/datasets/talks-test/versions/1"
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
    assert sum("row 201" in finding.message for finding in found.findings) == 1
    assert found.sample.lengths[0].mean > 0
    # What the pre-flight says stops it does stop it, in the same words, and nothing begins.
    error = await refusal(served.RunTraining(pb.RunTrainingRequest(name=NAME)))
    assert (error.reason, error.message) == ("PREFLIGHT_FAILED", found.findings[0].message)
    runs = await served.ListTrainingRuns(pb.ListTrainingRunsRequest(parent=NAME))
    assert [each.name for each in runs.training_runs] == [run.name]


STRICT = (
    "{% for m in messages %}{% if m['content'] == 'no' %}{{ raise_exception('no means no') }}{% endif %}"
    "{{ m['role'] }}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)


async def test_a_row_stops_a_run_only_if_the_run_would_look_at_it(served: Caller, dataset: FakeDataset) -> None:
    """Every conversation is read, those that steps take are rendered, and so it is with the rows that are held out."""
    await served.project()
    await served.training()
    files = tokenizer_files(train_tokenizer([row["text"] for row in rows(60)], 400), 32, STRICT)
    run = await served.RunTraining(pb.RunTrainingRequest(name=NAME))
    others = {path.removesuffix(".json"): content for path, content in files.items()}
    base = await apply(served, run, b"weights", config=json.dumps(CONFIG).encode(), **others)
    content = [{"messages": talk("q", f"a{number}")} for number in range(40)]
    # The phase takes four of forty rows.
    order = row_order(40, 7, 0, False)
    content[order[-1]] = {"messages": talk("no", "b")}
    dataset.add(TALKS, content)
    dataset.add(HELD_TALKS, [{"messages": talk("q", "a")}] * 3)
    phase = training_pb2.Phase(
        method=training_pb2.Phase.METHOD_SFT, steps=1, batch_size=4, learning_rate=0.01, messages_column="messages"
    )
    changed = training_pb2.Training(
        name=NAME,
        dataset_version=TALKS,
        validation_version=HELD_TALKS,
        base_model_version=base.name,
        spec=training_pb2.TrainingSpec(phases=[phase], seed=7),
    )
    update = pb.UpdateTrainingRequest(training=changed)
    update.update_mask.paths.extend(["dataset_version", "validation_version", "base_model_version", "spec"])
    await served.UpdateTraining(update)
    assert not any(finding.blocking for finding in (await preflight(served)).findings)
    content[order[0]] = {"messages": talk("no", "b")}
    dataset.add(TALKS, content)
    expected = f"sft: row {order[0] + 1}: messages: the chat template does not take it: no means no."
    assert [each.message for each in (await preflight(served)).findings if each.blocking] == [expected]
    assert (await refusal(served.RunTraining(pb.RunTrainingRequest(name=NAME)))).message == expected

    dataset.add(TALKS, [{"messages": talk("q", "a")}] * 40)
    dataset.add(HELD_TALKS, [{"messages": talk("q", "a")}, {"messages": [{"role": "user", "content": "x"}]}])
    expected = "sft: row 2 of the validation_version: messages: no assistant turn with a weight of 1."
    found = await preflight(served)
    assert [each.message for each in found.findings if each.blocking] == [expected]
    assert [(fault.version, fault.row) for fault in found.sample.faults] == [("validation_version", 2)]
    assert (await refusal(served.RunTraining(pb.RunTrainingRequest(name=NAME)))).message == expected


async def test_a_part_that_is_gone_is_told_before_a_run(served: Caller) -> None:
    await served.project()
    await served.training()
    await served.DeleteModelProject(model_service_pb2.DeleteModelProjectRequest(name=PROJECT))
    (finding,) = [each for each in (await preflight(served)).findings if each.blocking]
    assert PROJECT in finding.message
    assert (await refusal(served.RunTraining(pb.RunTrainingRequest(name=NAME)))).message == finding.message


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
