"""The RPCs of InferenceService, served by a replica. One function an RPC, bound by libs.common.rpc like every
handler."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing

from argosy.common.v1 import options_pb2
from argosy.deploy.v1 import inference_service_pb2 as pb
from opentelemetry import trace

from libs.common.errors import ArgosyError, invalid_field, not_found
from libs.common.rpc.call import Call
from services.deploy.engines.errors import EngineGone, RequestRefused
from services.deploy.engines.serving import Serving
from services.deploy.engines.text_engine import Piece

_log = logging.getLogger(__name__)


async def generate(request: pb.GenerateRequest, call: Call[Serving]) -> AsyncGenerator[pb.GenerateResponse]:
    """Streams the answer. When the caller goes away this generator is closed, and with it the request in the engine."""
    serving = call.deps
    if call.principal.org != serving.org and call.principal.role != options_pb2.ROLE_SYSTEM:
        raise not_found(serving.audience)
    started = call.clock.monotonic()
    tally = _Tally(request)
    try:
        async with aclosing(serving.engine.generate(request)) as pieces:
            async for piece in pieces:
                response = tally.add(piece)
                if tally.pieces == 1:
                    response.time_to_first_token_seconds = call.clock.monotonic() - started
                    serving.metrics.first_token.record(response.time_to_first_token_seconds, serving.attributes)
                yield response
    except RequestRefused as refusal:
        raise invalid_field(refusal.field, refusal.description) from refusal
    except EngineGone as gone:
        audience = serving.audience
        message = "The replica stopped while it was answering."
        raise ArgosyError("REPLICA_UNAVAILABLE", message, metadata={"deployment": audience}) from gone
    finally:
        _record(serving, tally, call.clock.monotonic() - started)


async def complete(request: pb.CompleteRequest, call: Call[Serving]) -> pb.CompleteResponse:
    """Gathers what `generate` streams. When the caller goes away the request leaves the engine just the same."""
    answers: dict[int, pb.GenerateResponse] = {}
    texts: defaultdict[int, list[str]] = defaultdict(list)
    async with aclosing(generate(request.request, call)) as parts:
        async for part in parts:
            texts[part.index].append(part.text)
            answers.setdefault(part.index, pb.GenerateResponse()).MergeFrom(part)
    for index, answer in answers.items():
        answer.text = "".join(texts[index])
    return pb.CompleteResponse(answers=[answers[index] for index in sorted(answers)])


async def get_replica_status(request: pb.GetReplicaStatusRequest, call: Call[Serving]) -> pb.ReplicaStatus:
    """How busy the engine is."""
    del request
    load = call.deps.engine.load
    return pb.ReplicaStatus(
        running=load.running,
        waiting=load.waiting,
        model_version=call.deps.model_version,
        generated_tokens=load.generated_tokens,
        kv_cache_usage=load.kv_cache_usage,
    )


class _Tally:
    """Counts tokens over the answers of one call and knows which piece is the last."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._answers = max(request.sampling.n, 1)
        self._open = self._answers * max(len(request.prompts), 1)
        self._prompts: dict[int, int] = {}
        self._completions: dict[int, int] = {}
        self.pieces = 0

    @property
    def usage(self) -> pb.Usage:
        return pb.Usage(prompt_tokens=sum(self._prompts.values()), completion_tokens=sum(self._completions.values()))

    def add(self, piece: Piece) -> pb.GenerateResponse:
        self.pieces += 1
        # Answers to one prompt share it: its tokens count once.
        self._prompts[piece.index // self._answers] = piece.prompt_tokens
        self._completions[piece.index] = piece.completion_tokens
        response = pb.GenerateResponse(index=piece.index, text=piece.text, finish_reason=piece.finish_reason)
        for chosen in piece.logprobs:
            response.logprobs.add(token=chosen.token, logprob=chosen.logprob, top=chosen.top)
        if piece.finish_reason:
            self._open -= 1
            if not self._open:
                response.usage.CopyFrom(self.usage)
        return response


def _record(serving: Serving, tally: _Tally, seconds: float) -> None:
    usage = tally.usage
    _log.info(
        "generated %d tokens behind %d in %.0f ms",
        usage.completion_tokens,
        usage.prompt_tokens,
        seconds * 1000,
        extra={
            "argosy.org": serving.org,
            "argosy.deployment": serving.audience,
            "argosy.model_version": serving.model_version,
        },
    )
    span = trace.get_current_span()
    span.set_attribute("gen_ai.usage.input_tokens", usage.prompt_tokens)
    span.set_attribute("gen_ai.usage.output_tokens", usage.completion_tokens)
    span.set_attribute("argosy.model_version", serving.model_version)
    serving.metrics.tokens.add(usage.prompt_tokens, {**serving.attributes, "kind": "prompt"})
    serving.metrics.tokens.add(usage.completion_tokens, {**serving.attributes, "kind": "completion"})
