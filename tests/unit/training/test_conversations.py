"""Conversations of rows: what is read, what is refused, and which turns can go."""

from __future__ import annotations

import json
from typing import Any

import pytest
from argosy.training.v1 import training_pb2 as pb

from libs.common.domain import DomainError
from services.training.domain.conversations import ConversationError, parse_conversation, without_oldest
from services.training.domain.estimate import estimate
from services.training.domain.preflight import DataFacts, preflight
from services.training.domain.spec import Method, Phase, TrainingSpec
from services.training.handlers.messages import spec_from, spec_message

SYSTEM = {"role": "system", "content": "Be short."}
ASK = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}


def parsed(*messages: Any) -> list[dict[str, Any]]:
    return parse_conversation(json.dumps(messages), "messages")


def test_roles_parts_and_weights_are_read() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]}
    found = parsed({**SYSTEM, "role": "developer", "name": None}, parts, {**ANSWER, "weight": 0}, ASK, ANSWER)
    assert found == [SYSTEM, ASK, {**ANSWER, "weight": 0}, ASK, {**ANSWER, "weight": 1}]
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    called = parsed(ASK, {"role": "assistant", "content": None, "tool_calls": calls})
    assert called[1] == {"role": "assistant", "content": "", "tool_calls": calls, "weight": 1}


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "messages: must be a list of messages"),
        (["text"], "messages[0]: must be an object"),
        ([ASK, {"role": "bot", "content": "4"}], "messages[1].role: must be one of system, developer, user"),
        ([ASK, {"role": ["user"], "content": "4"}], "messages[1].role: must be one of"),
        ([ASK, {"role": "assistant"}], "messages[1].content: is missing"),
        ([{"role": "user", "content": 4}, ANSWER], "messages[0].content: must be a text"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER],
            "messages[0].content[0]: only parts of type text",
        ),
        ([ASK, {**ANSWER, "weight": 2}], "messages[1].weight: must be 0 or 1"),
        ([{**ASK, "weight": 0}, ANSWER], "messages[0].weight: must be 0 or 1, and is for assistant"),
        ([ASK], "messages: no assistant turn with a weight of 1"),
        ([ASK, {**ANSWER, "weight": 0}], "messages: no assistant turn with a weight of 1"),
    ],
)
def test_what_is_no_conversation_is_named(messages: list[Any], fault: str) -> None:
    with pytest.raises(ConversationError) as refused:
        parsed(*messages)
    assert str(refused.value).startswith(fault)


@pytest.mark.parametrize("text", ["", "{", "{}", "null", '"text"'])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ConversationError, match="messages: must be a list of messages"):
        parse_conversation(text, "messages")


def test_oldest_turns_go_and_the_system_message_stays() -> None:
    later = [{"role": "user", "content": "3+3?"}, {"role": "assistant", "content": "6"}]
    messages = parsed(SYSTEM, ASK, ANSWER, *later)
    shorter = without_oldest(messages)
    assert shorter == parsed(SYSTEM, *later)
    assert without_oldest(shorter or []) is None
    # A turn whose answer does not count cannot stand alone.
    assert without_oldest(parsed(ASK, ANSWER, ASK, {**ANSWER, "weight": 0})) is None


def conversational(**fields: Any) -> TrainingSpec:
    return TrainingSpec(phases=(Phase(Method.SFT, 10, 4, 0.01, messages_column="messages", **fields),))


@pytest.mark.parametrize("kind", ["json", "string"])
def test_a_column_of_conversations_may_be_text_or_json(kind: str) -> None:
    facts = DataFacts("dataset_version", "v", 4, {"messages": kind}, [{"messages": json.dumps([ASK, ANSWER])}] * 4)
    assert preflight(conversational(), [facts], estimate(conversational()), 0) == []


def test_a_phase_on_conversations_reads_one_column() -> None:
    (phase,) = conversational().phases
    assert phase.columns == ("messages",)
    assert TrainingSpec.from_json(conversational().to_json()) == conversational()
    pretrain = TrainingSpec(phases=(Phase(Method.PRETRAIN, 10, 4, 0.01, messages_column="messages"),))
    with pytest.raises(DomainError, match=r"spec.phases\[0\].messages_column is for supervised fine-tuning"):
        pretrain.check()


def test_messages_do_not_go_with_the_other_columns() -> None:
    given = pb.Phase(method=pb.Phase.METHOD_SFT, steps=10, batch_size=4, learning_rate=0.01, messages_column="messages")
    spec = spec_from(pb.TrainingSpec(phases=[given]))
    # What is shown can be sent back.
    assert spec_from(spec_message(spec)) == spec
    others = pb.Phase(text_column="text"), pb.Phase(answer_column="label"), pb.Phase(prompt_template="{text}")
    for wrong, name in zip(others, ("text_column", "answer_column", "prompt_template"), strict=True):
        wrong.MergeFrom(given)
        with pytest.raises(DomainError, match=f"spec.phases.{name} does not go with messages_column"):
            spec_from(pb.TrainingSpec(phases=[wrong]))
