"""The sample of rows that a pre-flight looks at, as findings and as a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from argosy.training.v1 import preflight_pb2 as pb

from libs.common.rpc.call import Call
from services.training.clients.dataset import DatasetVersion
from services.training.clients.samples import Sample
from services.training.domain.preflight import Finding
from services.training.domain.row_faults import RowFault
from services.training.domain.trainings import Training
from services.training.handlers.bases import complete_version

if TYPE_CHECKING:
    from services.training.app import App

# A grant is for the process that looks, which ends long before.
_GRANT_SECONDS = 120
_MANY_CUT = 0.5


def stops_by_rows(training: Training) -> bool:
    """Whether something that a sample can find ends a run: a conversation, the base's tokenizer and template, or a
    pattern. Other rows at fault are left out."""
    phases = training.spec.phases
    asks = any(phase.messages_column or phase.rollouts.patterns for phase in phases) or training.base_model_version
    return bool(asks) and not training.runs_algorithm


async def sampled(training: Training, versions: Sequence[tuple[str, DatasetVersion]], call: Call[App]) -> Sample:
    """Looks at rows of the versions that a run would read, by the field that names each."""
    given: dict[str, dict[str, str]] = {}
    for field, version in versions:
        granted = await call.deps.datasets.grant_read(version.name, training.name, _GRANT_SECONDS)
        given[field] = {"grant": granted.grant, "manifest_digest": granted.manifest_digest}
    base = None
    if training.base_model_version:
        digest = await complete_version(training.base_model_version, call)
        base = {"grant": await call.deps.blobs.grant(digest, training.name, _GRANT_SECONDS), "manifest_digest": digest}
    return await call.deps.samples.look(training.spec, given, base)


def sample_findings(sample: Sample, told: bool) -> list[Finding]:
    """What the sample has against a run.

    Args:
        told: whether it was said already that rows have no answers.
    """
    if sample.error:
        return [Finding("template", sample.stops, sample.error)]
    found = [
        Finding("template", fault.blocking, f"{fault.phase}: {_row(fault)}: {fault.column}: {fault.problem}.")
        for fault in sample.faults[:1]
        if fault.blocking or not told
    ]
    found += [
        Finding(
            "template",
            False,
            f"{each.phase} cuts {each.cut_share:.0%} of the rows: they are longer than {each.limit} tokens.",
        )
        for each in sample.lengths
        if each.cut_share > _MANY_CUT
    ]
    return found


def _row(fault: RowFault) -> str:
    return f"row {fault.row}" + ("" if fault.version == "dataset_version" else f" of the {fault.version}")


def sample_message(sample: Sample) -> pb.RowSample | None:
    """None where nothing was seen."""
    if sample.error:
        return None
    return pb.RowSample(
        rows=sample.rows,
        row_count=sample.row_count,
        seconds=sample.seconds,
        lengths=[
            pb.TokenLengths(
                phase=each.phase,
                context_length=each.limit,
                estimated=each.estimated,
                buckets=[
                    pb.LengthBucket(most_tokens=bound, row_count=count)
                    for bound, count in zip(each.bounds, each.counts, strict=True)
                ],
                cut_share=each.cut_share,
                mean=each.mean,
                p95=each.p95,
                longest=each.longest,
            )
            for each in sample.lengths
        ],
        faults=[
            pb.RowFault(
                version=each.version,
                row=each.row,
                phase=each.phase,
                column=each.column,
                blocking=each.blocking,
                problem=each.problem,
            )
            for each in sample.faults
        ],
    )
