"""Conversations and preferences in the forms of training tools, there and back."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.compute.versions import to_json
from services.dataset.engines.conversations import (
    READERS,
    RENUMBERED,
    REWRITTEN,
    WRITERS,
    read_alpaca,
    read_dpo,
    read_openai,
    read_sharegpt,
    write_alpaca,
    write_sharegpt,
)
from services.dataset.engines.formats import read_lines
from services.dataset.engines.losses import Inexpressible

TEXTS = st.text(max_size=8) | st.sampled_from(["a\nb", "\n", "", "\na"])
PLAIN = st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "assistant"]), TEXTS)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3).map(
    lambda pairs: [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
)
SYSTEM = st.lists(st.text(min_size=1, max_size=5).map(lambda text: {"role": "system", "content": text}), max_size=1)
BESIDE = st.dictionaries(st.sampled_from(["id", "lang", "score"]), st.integers(0, 9) | TEXTS, max_size=2)


@st.composite
def with_tools(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A conversation in which tools are called, one or several at once."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": draw(TEXTS)}]
    made, answered = 0, 0
    for _ in range(draw(st.integers(1, 3))):
        calls: list[dict[str, Any]] = []
        for _ in range(draw(st.integers(1, 2))):
            made += 1
            arguments = to_json(draw(st.dictionaries(st.text(max_size=3), st.integers(-99, 99) | TEXTS, max_size=2)))
            calls.append({"id": f"call_{made}", "type": "function", "function": {"name": "f", "arguments": arguments}})
        messages.append({"role": "assistant", "tool_calls": calls})
        for _ in calls:
            answered += 1
            messages.append({"role": "tool", "tool_call_id": f"call_{answered}", "content": draw(TEXTS)})
    return [*messages, {"role": "assistant", "content": draw(TEXTS)}]


def there_and_back(form: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row as the file of the form has it, read again."""
    record, changes = WRITERS[form](row)
    assert not changes
    return READERS[form.removesuffix("-conversational")](json.loads(json.dumps(record)))


@settings(max_examples=40, deadline=None)
@given(SYSTEM, TURNS, BESIDE)
def test_turns_come_back_from_every_form(system: list[Any], turns: list[Any], beside: dict[str, Any]) -> None:
    row = {"messages": [*system, *turns], **beside}
    for form in ("openai", "alpaca", "sharegpt"):
        assert there_and_back(form, row) == row


@settings(max_examples=40, deadline=None)
@given(SYSTEM, with_tools(), st.booleans())
def test_tools_come_back_from_sharegpt(system: list[Any], messages: list[Any], described: bool) -> None:
    row: dict[str, Any] = {"messages": [*system, *messages]}
    if described:
        row["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert there_and_back("sharegpt", row) == row
    assert there_and_back("openai", row) == row


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS, TEXTS, st.text(max_size=3), st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=2))
def test_an_alpaca_record_comes_back(
    instruction: str, given_: str, output: str, system: str, history: list[Any]
) -> None:
    record = {"instruction": instruction, "input": given_, "output": output}
    record |= {name: value for name, value in (("system", system), ("history", history)) if value}
    assert write_alpaca(read_alpaca(record)) == (record, [])


@settings(max_examples=40, deadline=None)
@given(st.lists(PLAIN, min_size=1, max_size=3), *[st.lists(PLAIN, min_size=1, max_size=2)] * 2, BESIDE)
def test_preferences_come_back(
    prompt: list[Any], chosen: list[Any], rejected: list[Any], beside: dict[str, Any]
) -> None:
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **beside}
    assert there_and_back("dpo-conversational", row) == row
    single = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    plain = {name: [{"role": role, "content": row[name][0]["content"]}] for name, role in single.items()}
    assert there_and_back("dpo", plain) == plain
    assert all(isinstance(value, str) for value in WRITERS["dpo"](plain)[0].values())


def test_a_prompt_is_the_common_beginning() -> None:
    ask, yes, no = (
        {"role": role, "content": text} for role, text in (("user", "?"), ("assistant", "y"), ("assistant", "n"))
    )
    found = read_dpo({"chosen": [ask, yes], "rejected": [ask, no]})
    assert found == {"prompt": [ask], "chosen": [yes], "rejected": [no]}
    same = read_dpo({"chosen": [ask, yes], "rejected": [ask, yes, ask]})
    assert (same["chosen"], same["rejected"]) == ([yes], [yes, ask])


def test_openai_preferences_are_read() -> None:
    ask, yes, no = (
        {"role": role, "content": text} for role, text in (("user", "?"), ("assistant", "y"), ("assistant", "n"))
    )
    record = {
        "input": {"messages": [ask], "tools": []},
        "preferred_output": [yes],
        "non_preferred_output": [no],
        "id": 1,
    }
    assert read_dpo(record) == {"prompt": [ask], "chosen": [yes], "rejected": [no], "tools": [], "id": 1}
    for name, reason in (
        ("input", "input: not an object with messages"),
        ("preferred_output", "preferred_output: not a list with messages"),
        ("non_preferred_output", "non_preferred_output: not a list with messages"),
    ):
        with pytest.raises(Inexpressible, match=reason):
            read_dpo({**record, name: None})


def test_sharegpt_as_tools_write_it() -> None:
    record = {
        "system": "s",
        "tools": '[{"name": "f"}]',
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"b": 1, "a": 2}}'},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "a"},
        ],
    }
    row = read_sharegpt(record)
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert row["messages"][2]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":2,"b":1}'}
    assert (row["messages"][3]["tool_call_id"], row["tools"]) == ("call_1", [{"name": "f"}])


def test_what_comes_back_otherwise_is_told() -> None:
    call = {"id": "call_abc", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_abc", "content": ""},
    ]
    record, changes = write_sharegpt({"messages": [{"role": "user", "content": ""}, *messages]})
    assert changes == [REWRITTEN, RENUMBERED]
    assert record["conversations"][1]["value"] == '{"arguments":{"a":1},"name":"f"}'


USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        ("alpaca", {"messages": [USER]}, "answer|turns"),
        ("alpaca", {"messages": [ASSISTANT, USER]}, "turns of user and assistant"),
        ("alpaca", {"messages": [USER, USER, ASSISTANT, ASSISTANT]}, "turns of user and assistant"),
        ("alpaca", {"messages": [{"role": "system", "content": "s"}]}, "without an answer"),
        ("alpaca", {"messages": [{**USER, "name": "bo"}, ASSISTANT]}, "no place for name"),
        ("alpaca", {"messages": [{"role": "user", "content": [{"type": "text"}]}, ASSISTANT]}, "several parts"),
        ("alpaca", {"messages": [USER, ASSISTANT], "output": "x"}, "output: there is a column"),
        ("alpaca", {"messages": [USER, ASSISTANT], "input": "x"}, "input: is not the end"),
        ("sharegpt", {"messages": [{"role": "developer", "content": "d"}]}, "no developer messages"),
        ("sharegpt", {"messages": [USER, {"role": "system", "content": "s"}]}, "beginning only"),
        ("sharegpt", {"messages": [{**ASSISTANT, "tool_calls": [1]}]}, "tool call has no name"),
        ("sharegpt", {"messages": [{"role": "assistant", "content": "t", "tool_calls": []}]}, "tool_calls"),
        ("openai", {"messages": []}, "not a list with messages"),
        ("openai", {"messages": [{"role": "boss", "content": "x"}]}, r"messages\[0\].role"),
        ("openai", {"messages": [{"role": "user"}]}, r"messages\[0\].content: is missing"),
        ("openai", {"messages": ["x"]}, r"messages\[0\]: not an object"),
        ("openai", {"text": "x"}, "neither messages"),
        ("dpo", {"prompt": [USER, ASSISTANT], "chosen": "a", "rejected": "b"}, "plain DPO has one user message"),
        ("dpo", {"prompt": "a", "chosen": "b"}, "rejected: not a list"),
        ("dpo", {"chosen": "b", "rejected": "c"}, "prompt, chosen or rejected is empty"),
    ],
)
def test_what_a_form_cannot_say_has_a_reason(form: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Inexpressible, match=reason):
        WRITERS[form](row)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(READERS)),
    st.dictionaries(
        st.sampled_from(["messages", "conversations", "instruction", "input", "output", "history", "tools", "prompt"]),
        st.recursive(
            st.none() | st.integers() | st.sampled_from(["user", "human", "{", "function_call", '{"name": 1}']),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["role", "content", "from", "value", "tool_calls"]), inner, max_size=4
                )
            ),
            max_leaves=8,
        ),
        max_size=4,
    ),
)
def test_anything_is_a_row_or_has_a_reason(form: str, record: dict[str, Any]) -> None:
    for convert in (READERS[form], *WRITERS.values()):
        try:
            convert(record)
        except Inexpressible as reason:
            assert str(reason)


def test_a_reason_is_short_and_can_be_kept() -> None:
    for name in ("\x00", "n" * 5000):
        with pytest.raises(Inexpressible) as caught:
            write_alpaca({"messages": [{**USER, name: 1}, ASSISTANT]})
        assert "\x00" not in str(caught.value)
        assert len(str(caught.value)) <= 300


def test_files_of_every_form_are_read_as_array_or_as_lines() -> None:
    row = {"messages": [USER, ASSISTANT]}
    for form in ("openai", "alpaca", "sharegpt"):
        records = [WRITERS[form](row)[0], {"broken": 1}, WRITERS[form](row)[0]]
        as_lines = "\n".join(json.dumps(record) for record in records).encode()
        for data in (as_lines, b"\xef\xbb\xbf \n" + json.dumps(records, indent=1).encode()):
            first, broken, last = read_lines(io.BytesIO(data), form)
            assert first.row == last.row == row
            assert broken.row is None
            assert broken.error
    assert read_openai({"messages": [{**USER, "name": None}]}) == {"messages": [USER]}
