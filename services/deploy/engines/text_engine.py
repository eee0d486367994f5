"""vLLM behind a small surface: start, answer, stop. Runs in any process with an event loop; knows neither Ray nor
gRPC."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.deploy.engines.chat import render_chat
from services.deploy.engines.environment import cuda_present, prepare_environment
from services.deploy.engines.errors import EngineGone, RequestRefused, ResourcesMissing

if TYPE_CHECKING:
    from argosy.deploy.v1 import inference_service_pb2

DEFAULT_CONCURRENCY = 32
# Enough for 32 short answers of a small model; a larger model's deployment states its own size.
DEFAULT_CPU_KV_CACHE_BYTES = 64 << 20
# Deeper schemas are refused by the grammar compilers or make them slow.
_MAX_SCHEMA_DEPTH = 64
# What the OpenAI API gives for a token that cannot come; JSON has no infinity.
_NEVER = -9999.0


@dataclass(frozen=True)
class EngineOptions:
    """What a deployment asks of an engine. Zero means the default.

    Args:
        max_model_length: tokens of prompt and answer together; 0: the model's.
        max_concurrency: sequences that are computed at once.
        kv_cache_bytes: 0: 64 MiB on a CPU, the engine's choice on a GPU.
        gpus: GPUs of this replica.
        cpus: CPU cores of this replica; 0: 1.
    """

    max_model_length: int = 0
    max_concurrency: int = 0
    kv_cache_bytes: int = 0
    gpus: float = 0
    cpus: float = 0


@dataclass
class EngineLoad:
    """How busy the engine is, as of its newest step."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    generated_tokens: int = 0


@dataclass(frozen=True)
class Chosen:
    """A token with its log probability and those of the alternatives."""

    token: str
    logprob: float
    top: dict[str, float]


@dataclass(frozen=True)
class Piece:
    """What is new of one answer. `finish_reason` is set in its last piece; the token counts are of the whole answer
    then."""

    index: int
    text: str
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: list[Chosen] = field(default_factory=list)


class TextEngine:
    """One model in one vLLM engine.

    Args:
        engine: the AsyncLLM.
        tokenizer: the model's, from transformers.
        load: updated by the engine at each step.
    """

    def __init__(self, engine: Any, tokenizer: Any, load: EngineLoad) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._ids = itertools.count()
        self.load = load
        self.context_length: int = engine.model_config.max_model_len

    @staticmethod
    def start(folder: Path, options: EngineOptions) -> TextEngine:
        """Loads the model and starts the engine. Blocks for seconds; call it in the thread of the running event loop.

        Raises:
            ResourcesMissing: GPUs are asked for on a machine without one.
        """
        cuda = _check_device(options)
        prepare_environment(cuda=cuda, cpus=options.cpus)
        from transformers import AutoTokenizer
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from services.deploy.engines.engine_stats import stats_factory

        load = EngineLoad()
        arguments = AsyncEngineArgs(model=str(folder), **_arguments(options, cuda))
        engine = AsyncLLM.from_engine_args(arguments, stat_loggers=[stats_factory(load)])
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return TextEngine(engine, tokenizer, load)

    def close(self) -> None:
        """Stops the engine and waits until its child process is gone."""
        self._engine.shutdown(timeout=5.0)

    @property
    def failed(self) -> bool:
        """Whether the engine died."""
        return bool(self._engine.errored)

    async def generate(self, request: inference_service_pb2.GenerateRequest) -> AsyncGenerator[Piece]:
        """Answers one request. Closing the iterator takes the request out of the engine.

        A call with `prompts` gives each answer whole, in their order; any other call streams, and tokens that are
        ready together come in one piece.

        Raises:
            RequestRefused: a field is wrong, or the prompt is longer than the context.
            EngineGone: the engine died.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        prompts = await self._prompts(request)
        answers = self._answer_each if request.prompts else self._stream
        try:
            async with aclosing(answers(prompts, request.sampling)) as pieces:
                async for piece in pieces:
                    yield piece
        except EngineDeadError as error:
            raise EngineGone("the engine stopped") from error
        except VLLMClientError as error:
            # The other parameters were checked before; grammars are compiled by the engine only.
            part = "sampling.json_schema" if request.sampling.json_schema else "sampling"
            raise RequestRefused(part, "the engine does not take it") from error

    async def _prompts(self, request: inference_service_pb2.GenerateRequest) -> list[list[int]]:
        given = [bool(request.prompt), bool(request.messages), bool(request.prompts)]
        if sum(given) != 1:
            raise RequestRefused("prompt", "exactly one of prompt, messages and prompts must be set")
        special = True
        if request.messages:
            text, special = render_chat(self._tokenizer, request.messages, request.tools_json)
            texts, names = [text], ["messages"]
        elif request.prompt:
            texts, names = [request.prompt], ["prompt"]
        else:
            texts, names = list(request.prompts), [f"prompts[{i}]" for i in range(len(request.prompts))]
        if len(texts) > 1 or len(texts[0]) > 4096:
            encoded = await asyncio.to_thread(self._encode, texts, special)
        else:
            encoded = self._encode(texts, special)
        for name, ids in zip(names, encoded, strict=True):
            self._check_length(name, ids)
        return encoded

    def _encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        return self._tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False)["input_ids"]

    def _check_length(self, name: str, ids: Sequence[int]) -> None:
        if not ids:
            raise RequestRefused(name, "is empty")
        if len(ids) >= self.context_length:
            limit = self.context_length - 1
            raise RequestRefused(name, f"has {len(ids)} tokens; the model takes at most {limit} and one for the answer")

    async def _stream(
        self, prompts: Sequence[list[int]], sampling: inference_service_pb2.SamplingParameters
    ) -> AsyncGenerator[Piece]:
        from vllm.inputs import tokens_input

        ids = prompts[0]
        parameters = sampling_parameters(sampling, self.context_length - len(ids), stream=True)
        counts = [0] * parameters.n
        # Closing it takes the request out of the engine when the caller went away.
        async with aclosing(self._engine.generate(tokens_input(ids), parameters, self._next_id())) as outputs:
            async for output in outputs:
                for completion in output.outputs:
                    counts[completion.index] += len(completion.token_ids)
                    yield self._piece(completion, 0, len(ids), counts[completion.index])

    async def _answer_each(
        self, prompts: Sequence[list[int]], sampling: inference_service_pb2.SamplingParameters
    ) -> AsyncGenerator[Piece]:
        from vllm.inputs import tokens_input

        answers = max(sampling.n, 1)
        waiting: deque[tuple[int, Any]] = deque()
        try:
            for position, ids in enumerate(prompts):
                parameters = sampling_parameters(sampling, self.context_length - len(ids), stream=False)
                collector = await self._engine.add_request(self._next_id(), tokens_input(ids), parameters)
                waiting.append((position, collector))
            while waiting:
                position, collector = waiting[0]
                output = collector.get_nowait() or await collector.get()
                for completion in output.outputs:
                    index = position * answers
                    yield self._piece(completion, index, len(prompts[position]), len(completion.token_ids))
                if output.finished:
                    waiting.popleft()
        finally:
            if waiting:
                await self._engine.abort([collector.request_id for _, collector in waiting], internal=True)

    def _piece(self, completion: Any, first_index: int, prompt_tokens: int, completion_tokens: int) -> Piece:
        if completion.finish_reason == "abort":
            raise EngineGone("the engine gave the request up")
        self.load.generated_tokens += len(completion.token_ids)
        return Piece(
            index=first_index + completion.index,
            text=completion.text,
            finish_reason=completion.finish_reason or "",
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            logprobs=_chosen(completion),
        )

    def _next_id(self) -> str:
        return str(next(self._ids))


def sampling_parameters(sampling: inference_service_pb2.SamplingParameters, room: int, *, stream: bool) -> Any:
    """vLLM's SamplingParams of ours. `room` is how many tokens still fit the context; a larger max_tokens is cut to it.

    Raises:
        RequestRefused: the schema is not JSON, or a value is out of the engine's range.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    structured = None
    if sampling.json_schema:
        structured = StructuredOutputsParams(json=_checked_schema(sampling.json_schema))
    try:
        return SamplingParams(
            n=max(sampling.n, 1),
            max_tokens=min(sampling.max_tokens or room, room),
            temperature=sampling.temperature if sampling.HasField("temperature") else 1.0,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            seed=sampling.seed if sampling.HasField("seed") else None,
            stop=list(sampling.stop) or None,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
            structured_outputs=structured,
            output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
        )
    except ValueError as error:
        raise RequestRefused("sampling", "the engine does not take these parameters") from error


def _checked_schema(text: str) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestRefused("sampling.json_schema", "is not valid JSON") from error
    if not isinstance(schema, dict) or _depth(schema) > _MAX_SCHEMA_DEPTH:
        raise RequestRefused("sampling.json_schema", f"must be an object at most {_MAX_SCHEMA_DEPTH} levels deep")
    return schema


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return deepest


def _chosen(completion: Any) -> list[Chosen]:
    if not completion.logprobs:
        return []
    chosen: list[Chosen] = []
    for token_id, candidates in zip(completion.token_ids, completion.logprobs, strict=False):
        top = {_text(key, each): max(each.logprob, _NEVER) for key, each in candidates.items()}
        own = candidates[token_id]
        chosen.append(Chosen(_text(token_id, own), max(own.logprob, _NEVER), top))
    return chosen


def _text(token_id: int, candidate: Any) -> str:
    return candidate.decoded_token if candidate.decoded_token is not None else f"<{token_id}>"


def _check_device(options: EngineOptions) -> bool:
    if options.gpus > 0 and not cuda_present():
        raise ResourcesMissing(f"{options.gpus:g} GPUs are asked for, but this machine has none")
    return options.gpus > 0


def _arguments(options: EngineOptions, cuda: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "trust_remote_code": False,
        "load_format": "safetensors",
        "max_num_seqs": options.max_concurrency or DEFAULT_CONCURRENCY,
        "max_model_len": options.max_model_length or None,
        "enable_log_requests": False,
        "generation_config": "vllm",
    }
    if options.kv_cache_bytes or not cuda:
        arguments["kv_cache_memory_bytes"] = options.kv_cache_bytes or DEFAULT_CPU_KV_CACHE_BYTES
    if cuda:
        arguments["tensor_parallel_size"] = max(int(options.gpus), 1)
    else:
        # Graph capture and compilation are for GPUs; on a CPU they only cost start time.
        arguments["enforce_eager"] = True
        arguments["dtype"] = "auto"
    return arguments
