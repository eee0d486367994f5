"""Entities to messages, and the parts of requests to values of the domain."""

from __future__ import annotations

from argosy.training.v1 import model_registry_service_pb2 as registry_pb
from argosy.training.v1 import run_costs_pb2
from argosy.training.v1 import training_pb2 as pb

from libs.common.db.mapping import timestamp, to_proto
from services.training.domain.adapter import Adapter
from services.training.domain.costs import ratio
from services.training.domain.divergence import OnDivergence
from services.training.domain.models import Gate, ModelAlias, ModelProject, ModelVersion, Signature, Transition
from services.training.domain.spec import Architecture, TrainingSpec
from services.training.domain.trainings import Training, TrainingRun
from services.training.handlers.algorithm_messages import struct
from services.training.handlers.distributions import distribution_from, distribution_message
from services.training.handlers.life_cycles import life_cycle_message
from services.training.handlers.phases import phase_from, phase_message

# A message has at most 9 MiB; a page of runs ends where it would be larger than this.
PAGE_BYTES = 6 * 1024 * 1024
_ON_DIVERGENCE = {
    OnDivergence.ALERT: pb.TrainingSpec.ON_DIVERGENCE_ALERT,
    OnDivergence.STOP: pb.TrainingSpec.ON_DIVERGENCE_STOP,
}


def training_message(training: Training) -> pb.Training:
    return to_proto(
        training,
        pb.Training(
            display_name=training.display_name,
            description=training.description,
            dataset_version=training.dataset_version,
            validation_version=training.validation_version,
            model_project=training.model_project,
            base_model_version=training.base_model_version,
            spec=spec_message(training.spec),
            algorithm_version=training.algorithm_version,
            parameters=struct(training.parameters),
            task=training.task,
            outside=training.outside,
        ),
    )


def run_message(run: TrainingRun) -> pb.TrainingRun:
    message = pb.TrainingRun(
        task=run.task,
        spec=spec_message(run.spec),
        dataset_version=run.dataset_version,
        dataset_digest=run.dataset_digest,
        model_version=run.model_version,
        results=run.results,
        framework=run.framework,
        algorithm_version=run.algorithm_version,
        parameters=struct(run.parameters),
        outside=run.outside,
    )
    if run.checkpoint is not None:
        message.checkpoint.CopyFrom(
            pb.Checkpoint(
                step=run.checkpoint.step,
                phase=run.checkpoint.phase,
                manifest_digest=run.checkpoint.manifest_digest,
                time=timestamp(run.checkpoint.time),
            )
        )
    if run.estimate or run.actual:
        message.costs.CopyFrom(_costs_message(run))
    return to_proto(run, message)


def _costs_message(run: TrainingRun) -> run_costs_pb2.RunCosts:
    return run_costs_pb2.RunCosts(
        estimate=run_costs_pb2.RunCost(**run.estimate) if run.estimate else None,  # type: ignore[arg-type]
        actual=run_costs_pb2.RunCost(**run.actual) if run.actual else None,  # type: ignore[arg-type]
        seconds_ratio=ratio(run, "seconds"),
        memory_ratio=ratio(run, "memory_bytes"),
    )


def project_message(project: ModelProject) -> pb.ModelProject:
    return to_proto(
        project,
        pb.ModelProject(
            display_name=project.display_name,
            description=project.description,
            train_framework=project.train_framework,
            inference_framework=project.inference_framework,
            live_version=project.live_version,
            code_repo_url=project.code_repo_url,
            metrics_url=project.metrics_url,
            model_uri=project.model_uri,
            life_cycle=life_cycle_message(project.life_cycle),
        ),
    )


def version_message(version: ModelVersion) -> pb.ModelVersion:
    message = to_proto(
        version,
        pb.ModelVersion(
            manifest_digest=version.manifest_digest,
            files=[pb.ModelFile(path=file.path, sha256=file.sha256, size=file.size) for file in version.files],
            training_run=version.training_run,
            base_model_version=version.base_model_version,
            parameter_count=version.parameter_count,
            architecture=version.architecture,
            context_length=version.context_length,
            model_card=version.model_card,
            gates=[gate_message(gate) for gate in version.gates],
            stage=version.stage,
            description=version.description,
            origin=version.origin,
            licence=version.licence,
            task=version.task,
        ),
    )
    if version.signature is not None:
        message.signature.CopyFrom(signature_message(version.signature))
    return message


def signature_message(signature: Signature) -> pb.ModelSignature:
    return pb.ModelSignature(
        key_id=signature.key_id, algorithm="Ed25519", value=signature.value, time=timestamp(signature.time)
    )


def alias_message(alias: ModelAlias) -> registry_pb.ModelAlias:
    return to_proto(alias, registry_pb.ModelAlias(model_version=alias.model_version))


def gate_message(gate: Gate) -> pb.Gate:
    return pb.Gate(
        gate=gate.gate,
        open=gate.open,
        evaluation=gate.evaluation,
        rule=gate.rule,
        figures=gate.figures,
        model_digest=gate.model_digest,
        decide_time=timestamp(gate.decide_time),
        reason=gate.reason,
    )


def transition_message(transition: Transition) -> pb.ModelVersionTransition:
    return pb.ModelVersionTransition(
        from_state=transition.from_state,
        to_state=transition.to_state,
        actor=transition.actor,
        time=timestamp(transition.time),
        reason=transition.reason,
        from_stage=transition.from_stage,
        to_stage=transition.to_stage,
    )


def spec_message(spec: TrainingSpec) -> pb.TrainingSpec:
    shape = spec.architecture
    return pb.TrainingSpec(
        adapter=_adapter_message(spec.adapter) if spec.adapter else None,
        phases=[phase_message(phase) for phase in spec.phases],
        architecture=pb.Architecture(
            vocabulary_size=shape.vocabulary_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            layers=shape.layers,
            heads=shape.heads,
            key_value_heads=shape.key_value_heads,
            sequence_length=shape.sequence_length,
        ),
        workers=spec.workers,
        threads_per_worker=spec.threads_per_worker,
        gpus_per_worker=spec.gpus_per_worker,
        seed=spec.seed,
        checkpoint_every=spec.checkpoint_every,
        on_divergence=_ON_DIVERGENCE[spec.on_divergence],
        distribution=distribution_message(spec.distribution),
    )


def _adapter_message(adapter: Adapter) -> pb.Adapter:
    return pb.Adapter(
        method=pb.Adapter.METHOD_LORA,
        rank=adapter.rank,
        alpha=adapter.alpha,
        dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        quantize_base_bits=adapter.quantize_base_bits,
        merge=adapter.merge,
    )


def spec_from(message: pb.TrainingSpec) -> TrainingSpec:
    """A spec with its defaults written out."""
    return TrainingSpec(
        phases=tuple(phase_from(phase) for phase in message.phases),
        architecture=_architecture_from(message.architecture),
        workers=message.workers or 1,
        threads_per_worker=message.threads_per_worker or 1,
        gpus_per_worker=message.gpus_per_worker,
        seed=message.seed,
        checkpoint_every=message.checkpoint_every or 200,
        on_divergence=_stop_or_alert(message),
        adapter=_adapter_from(message.adapter) if message.HasField("adapter") else None,
        distribution=distribution_from(message.distribution, message.gpus_per_worker),
    )


def _adapter_from(message: pb.Adapter) -> Adapter:
    """As it was given: what is left out depends on the base, and `bases.fitted` puts it in."""
    return Adapter(
        rank=message.rank,
        alpha=message.alpha,
        dropout=message.dropout,
        target_modules=tuple(message.target_modules),
        quantize_base_bits=message.quantize_base_bits,
        merge=message.merge,
    )


def _stop_or_alert(message: pb.TrainingSpec) -> OnDivergence:
    stops = message.on_divergence == pb.TrainingSpec.ON_DIVERGENCE_STOP
    return OnDivergence.STOP if stops else OnDivergence.ALERT


def _architecture_from(message: pb.Architecture) -> Architecture:
    """The numbers that were given; the others are those of the smallest model that learns the demo's task."""
    default = Architecture()
    heads = message.heads or default.heads
    hidden = message.hidden_size or default.hidden_size
    return Architecture(
        vocabulary_size=message.vocabulary_size or default.vocabulary_size,
        hidden_size=hidden,
        # 8/3 of the hidden size, as in LLaMA (Touvron et al., 2023, section 2.2), in steps of eight.
        intermediate_size=message.intermediate_size or -(-hidden * 8 // 3 // 8) * 8,
        layers=message.layers or default.layers,
        heads=heads,
        key_value_heads=message.key_value_heads or heads,
        sequence_length=message.sequence_length or default.sequence_length,
    )
