"""Starts the workers: as one Ray Train job, or in this process where there is no Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from libs.common.blobs import BlobStore
from libs.common.domain import DomainError
from libs.compute.actor import PASSING
from libs.compute.context import EngineCancelled, EngineContext, EngineError, EngineInterrupted, EnginePaused
from libs.compute.scratch import scratch_folder
from services.training.domain.distribution import Precision, Sharding
from services.training.domain.spec import TrainingSpec
from services.training.engines.checkpoints import Json
from services.training.engines.group import CPU, Group
from services.training.engines.loop import seed_worker
from services.training.engines.prepared import load_job
from services.training.engines.reports import TaskReports
from services.training.engines.worker import Worker

# A worker process that dies is started again inside the same fit; more often than this, something else is wrong.
_MAX_FAILURES = 3
_DRAIN_SECONDS = 0.2
# How often a run that may grow looks for room. Growing costs the start of a group, and the steps since a checkpoint.
_RESIZE_SECONDS = 60.0
_PRECISIONS = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}


def run_here(ctx: EngineContext, spec: TrainingSpec, plan: Json) -> Json:
    """The whole run in this process: one worker that takes every row of a step.

    Raises:
        EngineError: PREFLIGHT_FAILED, it is to have a GPU and there is none.
    """
    seed_worker(spec.seed, spec.threads_per_worker)
    if spec.gpus_per_worker and not torch.cuda.is_available():
        message = "spec.gpus_per_worker needs a GPU, which is not here; 0 trains on the CPU."
        raise EngineError("PREFLIGHT_FAILED", message, check="gpus_per_worker", detail=message)
    device = torch.device("cuda", 0) if spec.gpus_per_worker else CPU
    group = Group(device=device, precision=_PRECISIONS[spec.distribution.precision])
    with scratch_folder("argosy-train-") as folder:
        job = load_job(ctx.blobs_write, plan, spec, folder)
        return Worker(job, group, TaskReports(ctx, plan), ctx.resume).run()


def run_on_ray(ctx: EngineContext, spec: TrainingSpec, plan: Json) -> Json:
    """The whole run in one `fit` of Ray Train, with `spec.workers` processes, or as many as there is room for.

    Raises:
        EngineCancelled: The task was cancelled.
        EnginePaused: It stopped at a checkpoint, as it was asked to.
        EngineInterrupted: The workers died too often; another attempt goes on from the newest checkpoint.
        EngineError: What a worker says is wrong with the run.
    """
    from services.training.engines.relay import deliver, start_relay

    relay = start_relay(ctx.resume)
    reports = TaskReports(ctx, plan)
    failure: list[BaseException] = []
    outcome: Json | None = None
    with scratch_folder("argosy-fit-") as folder:
        loop_config = {
            "spec": spec.to_json(),
            "plan": plan,
            "store": ctx.blobs_write,
            "relay": relay,
        }
        fit = threading.Thread(target=_fit, args=(loop_config, spec, folder, failure), name="fit", daemon=True)
        fit.start()
        while fit.is_alive():
            fit.join(_DRAIN_SECONDS)
            outcome = deliver(relay, reports) or outcome
            if ctx.cancelled():
                relay.cancel.remote()
            if ctx.pausing():
                relay.pause.remote()
        outcome = deliver(relay, reports) or outcome
    return _result(outcome, failure)


def _result(outcome: Json | None, failure: list[BaseException]) -> Json:
    if outcome is None:
        cause = str(failure[0]).strip().splitlines()[-1][:300] if failure else "no worker reported a result"
        raise EngineInterrupted(f"The training workers died: {cause}")
    if "cancelled" in outcome:
        raise EngineCancelled()
    if "paused" in outcome:
        raise EnginePaused()
    if "error" in outcome:
        error = outcome["error"]
        raise EngineError(error["reason"], error["message"], retryable=error["retryable"], **error["metadata"])
    result: Json = outcome["result"]
    return result


def _fit(loop_config: Json, spec: TrainingSpec, folder: Path, failure: list[BaseException]) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    try:
        TorchTrainer(
            worker_main,
            train_loop_config=loop_config,
            # ray.train has the classes of both its versions, as a switch of the environment says.
            scaling_config=ScalingConfig(  # pyrefly: ignore[bad-argument-type]
                num_workers=spec.distribution.worker_range(spec.workers),  # pyrefly: ignore[bad-argument-type]
                elastic_resize_monitor_interval_s=_RESIZE_SECONDS,  # pyrefly: ignore[unexpected-keyword]
                use_gpu=spec.gpus_per_worker > 0,
                resources_per_worker=worker_resources(spec),
            ),
            torch_config=TorchConfig(backend=_backend(spec)),
            run_config=RunConfig(  # pyrefly: ignore[bad-argument-type]
                name="fit",
                storage_path=str(folder),
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),  # pyrefly: ignore[bad-argument-type]
            ),
        ).fit()
    except Exception as error:
        failure.append(error)


def _backend(spec: TrainingSpec) -> str:
    """What the workers speak to each other by."""
    if not spec.gpus_per_worker:
        return "gloo"
    # What lies in host memory is summed there.
    return "cpu:gloo,cuda:nccl" if spec.distribution.sharding is Sharding.FULL_OFFLOAD else "nccl"


def worker_resources(spec: TrainingSpec) -> dict[str, float]:
    """What Ray books for a worker."""
    booked = {"CPU": float(max(1, spec.threads_per_worker))}
    return {**booked, "GPU": float(spec.gpus_per_worker)} if spec.gpus_per_worker else booked


def cluster() -> dict[str, float]:
    """What the nodes of Ray have together, booked or not: `CPU`, `GPU`, ..."""
    import ray

    return {name: float(count) for name, count in ray.cluster_resources().items()}


def require_workers(spec: TrainingSpec, have: dict[str, float]) -> None:
    """Refuses a run for which all nodes together have not the room: it would wait for ever.

    Args:
        have: of the cluster.

    Raises:
        EngineError: PREFLIGHT_FAILED.
    """
    workers = spec.distribution.worker_range(spec.workers)
    fewest = workers if isinstance(workers, int) else workers[0]
    for kind, each in worker_resources(spec).items():
        field = "gpus_per_worker" if kind == "GPU" else "workers"
        if fewest * each > have.get(kind, 0.0):
            message = (
                f"spec.{field}: {fewest} workers need {fewest * each:g} {kind}s; all nodes together have "
                f"{have.get(kind, 0.0):g}."
            )
            raise EngineError("PREFLIGHT_FAILED", message, check=field, detail=message)


def worker_main(loop_config: dict[str, Any]) -> None:
    """What Ray Train calls in each worker process."""
    import ray
    from ray import train
    from ray.train.torch import get_device

    from services.training.engines.relay import RelayReports

    spec = TrainingSpec.from_json(loop_config["spec"])
    store: BlobStore = loop_config["store"]
    relay = loop_config["relay"]
    reports = RelayReports(relay)
    context = train.get_context()
    precision = _PRECISIONS[spec.distribution.precision]
    group = Group(context.get_world_rank(), context.get_world_size(), get_device(), precision)
    seed_worker(spec.seed, spec.threads_per_worker)
    if group.device.type == "cuda":
        torch.cuda.set_device(group.device)
    nodes = [""] * group.world
    distributed.all_gather_object(nodes, ray.get_runtime_context().get_node_id())
    if group.leads:
        reports.log(f"workers: {group.world}, nodes: {len(set(nodes))}")
    checkpoint: Json | None = ray.get(relay.newest_checkpoint.remote())  # type: ignore[assignment]
    with scratch_folder("argosy-train-") as folder:
        outcome = _outcome(
            lambda: Worker(load_job(store, loop_config["plan"], spec, folder), group, reports, checkpoint)
        )
    if group.leads:
        reports.outcome(outcome)


def _outcome(new_worker: Callable[[], Worker]) -> Json:
    """Runs a worker. An error of the run itself is an outcome: starting again would only repeat it."""
    try:
        return {"result": new_worker().run()}
    except EngineCancelled:
        return {"cancelled": True}
    except EnginePaused:
        return {"paused": True}
    except EngineError as error:
        return _error(error, error.retryable)
    except DomainError as error:
        if error.reason in PASSING:
            raise
        return _error(error, True)


def _error(error: EngineError | DomainError, retryable: bool) -> Json:
    given = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
    return {"error": {**given, "retryable": retryable}}
