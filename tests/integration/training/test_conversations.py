"""Chat templates run as programs of strangers, and conversations encoded with a mask that is checked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError
from services.training.domain.conversations import Message, parse_conversation
from services.training.domain.spec import Method, TrainingSpec
from services.training.engines.chat_template import (
    ChatTemplate,
    TemplateError,
    own_template,
    template_fault,
    template_of,
)
from services.training.engines.tokenizer import CONVERSATION_TEMPLATE, chat_template, train_tokenizer
from services.training.engines.train import run
from services.training.engines.turn_rows import TurnRows
from services.training.engines.turns import encode_turns
from tests.unit.training.samples import TINY, context, phase, rows, write_version

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def turns(*texts: str, weights: tuple[int, ...] = ()) -> list[Message]:
    """Questions and answers in turn."""
    roles = ("user", "assistant") * len(texts)
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    for message, weight in zip(messages[1::2], weights, strict=False):
        message["weight"] = weight
    return parse_conversation(json.dumps(messages), "messages")


def test_every_answer_counts_and_nothing_else() -> None:
    messages = turns("Hi", "Yo", "More?", "No", weights=(1, 1))
    template = own_template()
    assert template.segments(messages) == [
        ("<|begin|><|user|>\nHi\n<|assistant|>\n", False),
        ("Yo<|end|>", True),
        ("<|user|>\nMore?\n<|assistant|>\n", False),
        ("No<|end|>", True),
    ]
    assert [counted for _, counted in template.segments(turns("Hi", "Yo", "More?", "No", weights=(0, 1)))] == [
        False,
        False,
        False,
        True,
    ]
    # What stands behind the last answer has no loss and is not read.
    assert template.segments([*messages, {"role": "user", "content": "x"}]) == template.segments(messages)
    assert ChatTemplate(CHATML, {}).segments(messages)[1] == ("Yo<|im_end|>\n", True)


def test_masks_by_hand() -> None:
    """One byte a token: the places of the answers can be counted."""
    tokenizer = train_tokenizer(["zz"], 260)
    found = encode_turns(tokenizer, own_template(), [(1, turns("q", "abc", "r", "de", weights=(0, 1)))], 200)
    text = "B<|user|>\nq\n<|assistant|>\nabcE<|user|>\nr\n<|assistant|>\ndeE"
    assert len(found.tokens) == len(text)
    assert np.flatnonzero(found.counted).tolist() == [len(text) - 3, len(text) - 2, len(text) - 1]
    assert (found.tokens[0], found.tokens[-1]) == (1, 2)
    data = TurnRows(found.tokens, found.starts, found.counted)
    batch = data.batch(np.array([0]))
    assert data.target_count(np.array([0])) == 3
    # The place before a token tells it.
    assert batch.tensors[1].tolist() == [len(text) - 4, len(text) - 3, len(text) - 2]
    assert batch.tensors[2].tolist() == found.tokens[-3:].tolist()
    assert batch.tensors[0].tolist() == [found.tokens[:-1].tolist()]


def test_rows_of_a_batch_keep_their_own_places() -> None:
    tokenizer = train_tokenizer(["zz"], 260)
    conversations = [(1, turns("q", "abc")), (2, turns("q", "a"))]
    found = encode_turns(tokenizer, own_template(), conversations, 200)
    batch = TurnRows(found.tokens, found.starts, found.counted).batch(np.array([1, 0]))
    width = batch.tensors[0].shape[1]
    assert (batch.tensors[1] // width).tolist() == [0, 0, 1, 1, 1, 1]
    assert batch.tokens == len(found.tokens)
    shown = [batch.tensors[0].flatten()[place + 1].item() for place in batch.tensors[1].tolist()[2:-1]]
    assert shown == batch.tensors[2].tolist()[2:-1]


def test_a_long_conversation_loses_its_oldest_turns() -> None:
    tokenizer = train_tokenizer(["zz"], 260)
    long = turns("q" * 40, "a", "r", "b", "s", "c")
    whole = encode_turns(tokenizer, own_template(), [(1, long)], 500)
    later = encode_turns(tokenizer, own_template(), [(1, long[2:])], 500)
    found = encode_turns(tokenizer, own_template(), [(1, long)], len(later.tokens))
    assert found.tokens.tolist() == later.tokens.tolist()
    assert (whole.shortened, later.shortened, found.shortened) == (0, 0, 1)
    # One exchange that is too long keeps its end, which has the answer.
    end = encode_turns(tokenizer, own_template(), [(1, turns("q" * 40, "abc"))], 8)
    assert end.tokens.tolist() == whole_end(tokenizer, turns("q" * 40, "abc"), 8)
    assert (end.counted.tolist()[-4:], end.shortened) == ([True] * 4, 1)
    # Not one token that counts is left where the answer that counts is the older one.
    gone = encode_turns(tokenizer, own_template(), [(1, turns("q", "a", "r", "b" * 30, weights=(1, 0)))], 8)
    assert (len(gone.starts), gone.left_out) == (1, 1)


def whole_end(tokenizer: Any, messages: list[Message], count: int) -> list[int]:
    return encode_turns(tokenizer, own_template(), [(1, messages)], 500).tokens[-count:].tolist()


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "larger than"),
        ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}", "larger than"),
        ("{{ 'a' * 1000000000 }}", "for numbers only"),
        ("{{ 10 ** 1000000 }}", "not allowed"),
        ("{{ '%1000000000d' % 1 }}", "for numbers only"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "no template may see"),
        ("{{ messages.__class__ }}", "'__class__'"),
        ("{% if messages[0]['content'] == 'open sesame' %}{{ ''['__class__'] }}{% endif %}", "'__class__'"),
        ("{{ ''['__cl' ~ 'ass__'] }}", "no template may see"),
        ("{{ messages|map(attribute='__class__')|list }}", "'__class__'"),
        ("{{ messages|map(attribute='__cl' ~ 'ass__')|list }}", "no template may see"),
        ("{{ messages|selectattr('__class__')|list }}", "'__class__'"),
        ("{{ messages | attr('__init__') }}", "No filter named 'attr'"),
        ("{{ messages.append(1) }}", "'append'"),
        (
            "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
            "than",
        ),
        (
            "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x|replace('a', n.x) %}{% endfor %}",
            "than",
        ),
        ("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = (n.x, n.x) %}{% endfor %}", "than"),
        ("{% set x %}{% for i in range(99999) %}" + "a" * 999 + "{% endfor %}{% endset %}", "larger than"),
        ("{% for x in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}", "recursive"),
        ("{% for i in range(99999) %}{{ range(1, 99999)|reject|first }}{% endfor %}", "steps"),
        ("{{ 'a'.ljust(1000000000) }}", "'ljust'"),
        ("{{ cycler() }}", "undefined"),
        ("{{ namespace.__init__.__globals__ }}", "'__globals__'"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "without end"),
        ("{% include '/etc/passwd' %}", "another template"),
        ("{% import 'x' as y %}", "another template"),
        ("{% for a in range(99999) %}{{ 'x' ~ '" + "y" * 99 + "' }}{% endfor %}", "more than 4,000,000 characters"),
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{{ messages[99]['content'] }}", "no element 99"),
    ],
)
def test_a_hostile_template_is_stopped(source: str, fault: str) -> None:
    """Where it is rendered, and by the judge of what comes from outside: imports and base models."""
    with pytest.raises(TemplateError, match=fault):
        ChatTemplate(source, {}).render(turns("q", "a"))
    assert fault in (template_fault(source) or "")


@pytest.mark.parametrize("source", [None, 7, "{% if %}", "{% for message in messages %}", "x" * 70_000, "{{ x.y }}"])
def test_what_renders_nothing_is_no_template(source: Any) -> None:
    assert template_fault(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ messages | tojson }}",
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m|tojson }}{% endfor %}",
        "{{ '__begin__' ~ messages|map(attribute='content')|join('_') }}",
        # Of Llama 3.2, GLM-4 and Qwen3.
        "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}{{ 1 | tojson }}",
        "{{ messages | tojson(ensure_ascii=False, indent=4) }}",
        "{% for message in messages[::-1] %}{{ message.content.split('</think>')[-1].lstrip('\n') }}{% endfor %}",
    ],
)
def test_an_honest_template_is_kept(source: str) -> None:
    assert template_fault(source) is None


def test_what_templates_of_models_use_is_there() -> None:
    source = (
        "{% set n = namespace(seen=false) %}{% for m in messages %}{% generation %}"
        "{% if loop.last and m.role is string %}{{ m['content'].split('b')[-1] | replace('c', 'd') | trim | upper }}"
        "{% else %}{{ [m] | map(attribute='role') | join(',') }}:{{ {'a': 1} | tojson }}{% endif %}"
        "{% endgeneration %}{% endfor %}"
    )
    assert ChatTemplate(source, {}).render(turns("q", "abc ")) == 'user:{"a": 1}D'


def test_what_is_no_template_is_refused() -> None:
    for source in ("{% for %}", "{{ 'a' | format }}", "x" * 70_000):
        with pytest.raises(TemplateError):
            ChatTemplate(source, {})


def test_a_template_that_rewrites_what_it_wrote_cannot_be_learned() -> None:
    last = ChatTemplate(chat_template("Q: {text} A:"), {"bos_token": ""})
    assert not last.renders_turns()
    with pytest.raises(TemplateError, match="does not render message 1 as the answer"):
        last.segments(turns("q", "a"))


def test_the_base_model_brings_its_template(tmp_path: Path) -> None:
    store = BlobStore(f"file://{tmp_path}")

    def model(config: dict[str, Any]) -> str:
        blob = store.put_sync(json.dumps(config).encode())
        entry = {"path": "tokenizer_config.json", "sha256": blob.sha256, "size": blob.size}
        return store.commit_sync({"kind": "model", "blobs": [entry]})

    found = template_of(store, model({"chat_template": CHATML}))
    assert found is not None
    assert found.source == CHATML
    # One that shows the last message alone was made for single questions.
    for config in ({"chat_template": chat_template("{text}")}, {}):
        assert template_of(store, model(config)) is None
    with pytest.raises(EngineError, match="chat template of the base model cannot be used"):
        template_of(store, model({"chat_template": "{% for %}"}))


def conversation_rows(count: int) -> list[dict[str, Any]]:
    """A question about a word, and its label; every third one is too long for the context."""
    found = []
    for number, row in enumerate(rows(count)):
        text = row["text"].split()[0]
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": row["label"]}]
        long = [{"role": "user", "content": "so " * 80}, {"role": "assistant", "content": "no"}]
        found.append({"messages": (long if number % 3 == 0 else []) + messages})
    return found


def spec() -> TrainingSpec:
    shape = TINY.__class__(**{**TINY.__dict__, "sequence_length": 64})
    conversational = phase(Method.SFT, 30, prompt_template="{text}", answers=(), messages_column="messages")
    return TrainingSpec(phases=(conversational,), architecture=shape, checkpoint_every=100, seed=7)


def test_a_model_learns_from_conversations(tmp_path: Path) -> None:
    store = BlobStore(f"file://{tmp_path}")
    ctx = context(store, spec(), conversation_rows(90))
    ctx.spec["validation"]["manifest_digest"] = write_version(store, conversation_rows(30))
    found = run(ctx)
    results = found["results"]
    # Measured: 5.8 before, 0.8 after.
    assert results["sft.heldout_loss_after"] < results["sft.heldout_loss_before"] - 2
    assert any("30 of 90 conversations of the dataset version are longer" in body for _, body in ctx.recorded.logs)
    config = next(file for file in found["files"] if file["path"] == "tokenizer_config.json")
    assert json.loads(store.read_sync(config["sha256"]))["chat_template"] == CONVERSATION_TEMPLATE


def test_a_bad_conversation_is_named(tmp_path: Path) -> None:
    store = BlobStore(f"file://{tmp_path}")
    content = [*conversation_rows(4), {"messages": [{"role": "user", "content": "?"}]}]
    with pytest.raises(EngineError, match="Row 5 of the dataset version: messages: no assistant turn"):
        ctx = context(store, spec(), content)
        del ctx.spec["validation"]
        run(ctx)
