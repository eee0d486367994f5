"""Workers of a run as processes that meet over gloo, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import distributed, multiprocessing

from libs.common.blobs import BlobStore
from libs.compute.context import LocalContext
from services.training.domain.spec import TrainingSpec
from services.training.engines.group import Group
from services.training.engines.loop import seed_worker
from services.training.engines.prepared import load_job
from services.training.engines.reports import TaskReports
from services.training.engines.worker import Worker

Json = dict[str, Any]


def run_ranks(folder: Path, plan: Json, jobs: list[Json], world: int = 2) -> list[Json]:
    """Runs jobs one after the other on the same workers.

    Args:
        folder: has the store in `blobs`.
        jobs: `spec` and `checkpoint` (None: from the beginning) of each.

    Returns:
        Of each job what the leading worker reported: `metrics`, `checkpoints`, `result`.
    """
    (folder / "jobs.json").write_text(json.dumps({"plan": plan, "jobs": jobs}), encoding="utf-8")
    (folder / "meeting").unlink(missing_ok=True)
    multiprocessing.spawn(_work, (str(folder), world), nprocs=world)
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def _work(rank: int, place: str, world: int) -> None:
    folder = Path(place)
    given = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=world)
    store, found = BlobStore(f"file://{folder}/blobs"), []
    for number, each in enumerate(given["jobs"]):
        spec = TrainingSpec.from_json(each["spec"])
        seed_worker(spec.seed, 1)
        ctx = LocalContext({}, blobs_write=store)
        files = folder / f"{number}-{rank}"
        files.mkdir()
        job = load_job(store, given["plan"], spec, files)
        reports = TaskReports(ctx, given["plan"])
        result = Worker(job, Group(rank, world), reports, each["checkpoint"]).run()
        recorded = ctx.recorded
        found.append({"metrics": recorded.metrics, "checkpoints": recorded.checkpoints, "result": result})
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()
