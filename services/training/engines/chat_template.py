"""Chat templates of models: judged, rendered, and cut where answers begin and end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError as JinjaError
from jinja2.exceptions import SecurityError

from libs.common.blobs import BlobStore
from libs.compute.context import EngineError
from services.training.domain.conversations import Message, counts
from services.training.engines.template_sandbox import MOST_SIZE, MOST_SOURCE, Sandbox
from services.training.engines.tokenizer import BEGIN, CONVERSATION_TEMPLATE, END, PAD

_PROBE = ("first-question", "first-answer", "second-question", "second-answer")
# What a template is judged by: conversations, and texts of special tokens.
_CONVERSATIONS: tuple[list[Message], ...] = (
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "How are you?"},
    ],
)
_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class TemplateError(Exception):
    """A template cannot be run, or does not render a conversation so that its answers can be told."""


class HostileTemplate(TemplateError):
    """It reaches for what no template may see, or does too much."""


def template_fault(source: Any) -> str | None:
    """What is wrong with a template from outside; None: it may be kept.

    It must be Jinja that stays in the sandbox and renders a conversation within its limits. It may refuse one of those
    it is judged by, such as one with a system message, but not all.
    """
    if not isinstance(source, str):
        return "it is no text"
    failures: list[str] = []
    try:
        template = ChatTemplate(source, _TOKENS)
        for messages in _CONVERSATIONS:
            try:
                template.render(messages, prompt=True)
            except HostileTemplate:
                raise
            except TemplateError as error:
                failures.append(str(error))
    except TemplateError as error:
        return str(error)
    return failures[0] if len(failures) == len(_CONVERSATIONS) else None


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        source: Jinja.
        tokens: `bos_token`, `eos_token`, ... as texts.

    Raises:
        TemplateError: It is no template, or one that is too long.
    """

    def __init__(self, source: str, tokens: dict[str, str]) -> None:
        if len(source) > MOST_SOURCE:
            raise TemplateError(f"it has more than {MOST_SOURCE:,} characters")
        self.source = source
        self.tokens = tokens
        self._sandbox = Sandbox()
        try:
            self._template = self._sandbox.from_string(source)
        except (JinjaError, RecursionError) as error:
            raise TemplateError(str(error)) from None

    def render(self, messages: Sequence[Message], *, prompt: bool = False, bare: bool = False) -> str:
        """A conversation as text.

        Args:
            prompt: whether the beginning of an answer comes at the end.
            bare: without special tokens.

        Raises:
            TemplateError: The template refuses the conversation or fails.
            HostileTemplate: It reaches for what it may not see, or does too much.
        """
        self._sandbox.begin()
        tokens = dict.fromkeys(self.tokens, "") if bare else self.tokens
        shown = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=shown, add_generation_prompt=prompt, tools=None, documents=None, **tokens
            ):
                pieces.append(piece)
                size += len(piece)
                if size > MOST_SIZE:
                    raise SecurityError(f"it makes more than {MOST_SIZE:,} characters")
        except SecurityError as error:
            raise HostileTemplate(str(error)) from None
        except RecursionError:
            raise HostileTemplate("it calls itself without end") from None
        except (JinjaError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise TemplateError(str(error) or type(error).__name__) from None
        return "".join(pieces)

    def segments(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """A conversation up to its last answer, cut where answers begin and end.

        Returns:
            Texts, and of each whether it is to be learned. Joined they are what `render` gives.

        Raises:
            TemplateError: A template changes what it wrote before, so that an answer does not follow its prompt.
        """
        segments: list[tuple[str, bool]] = []
        seen = ""
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt, whole = self.render(messages[:at], prompt=True), self.render(messages[: at + 1])
            if not prompt.startswith(seen) or not whole.startswith(prompt):
                raise TemplateError(f"it does not render message {at} as the answer to the messages before it")
            segments += [(prompt[len(seen) :], False), (whole[len(prompt) :], counts(message))]
            seen = whole
        return [segment for segment in segments if segment[0]]

    def continued(self, messages: Sequence[Message], answers: Sequence[Sequence[Message]]) -> list[str]:
        """A conversation up to an answer, and each of the answers as it comes behind it, with its end.

        Raises:
            TemplateError: An answer does not follow its prompt.
        """
        prompt = self.render(messages, prompt=True)
        texts = [prompt]
        for answer in answers:
            whole = self.render([*messages, *answer])
            if not whole.startswith(prompt) or len(whole) == len(prompt):
                raise TemplateError("it does not render an answer behind its prompt")
            texts.append(whole[len(prompt) :])
        return texts

    def renders_turns(self) -> bool:
        """Whether it shows each turn of a conversation, and not its last message alone."""
        roles = ("user", "assistant") * 2
        try:
            shown = self.render([{"role": role, "content": text} for role, text in zip(roles, _PROBE, strict=True)])
        except TemplateError:
            return False
        return all(text in shown for text in _PROBE)


def own_template(opening: str | None = None, ending: str | None = None) -> ChatTemplate:
    """The template of tokenizers that are made here, or of a base model that brings none.

    Args:
        opening, ending: what begins a prompt and ends an answer of that base. They are written out, as a server knows
            no name for them in every family; None: `bos_token` and `eos_token`.
    """
    source = CONVERSATION_TEMPLATE
    for name, text in (("bos_token", opening), ("eos_token", ending)):
        source = source if text is None else source.replace(name, json.dumps(text))
    return ChatTemplate(source, {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD})


def template_of(store: BlobStore, manifest_digest: str) -> ChatTemplate | None:
    """The template of a model version; None for a model that has none, or none for conversations.

    Raises:
        EngineError: CONTENT_INVALID, it is no template that can be run.
    """
    entries = {entry["path"]: entry["sha256"] for entry in store.load_manifest_sync(manifest_digest)["blobs"]}
    config: dict[str, Any] = {}
    if "tokenizer_config.json" in entries:
        config = json.loads(store.read_sync(entries["tokenizer_config.json"]))
    source = config.get("chat_template")
    if "chat_template.jinja" in entries:
        source = store.read_sync(entries["chat_template.jinja"]).decode("utf-8", "replace")
    if not isinstance(source, str):
        return None
    tokens = {name: _token(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    try:
        template = ChatTemplate(source, tokens)
    except TemplateError as error:
        message = f"The chat template of the base model cannot be used: {error}."
        raise EngineError("CONTENT_INVALID", message, detail="chat_template") from None
    return template if template.renders_turns() else None


def _token(value: Any) -> str:
    """A special token, which is a text or an object with one."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
