"""Databases of earlier versions of training."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from argosy.training.v1 import training_service_pb2 as pb
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from libs.common.db.migrate import migrate
from libs.common.ids import uuid7
from services.training.app import DEFINITION
from services.training.store.repositories import TrainingRuns
from services.training.store.run_search import terms_of
from tests.integration.training.conftest import training_service
from tests.integration.training.peers import Caller, FakeDataset
from tests.unit.training.samples import tiny_spec

_RUN = text(
    """
    INSERT INTO training_runs (uid, org, name, id, parent, version, state, create_time, update_time, labels, creator,
        task, spec, dataset_version, dataset_digest, validation_version, validation_digest, model_project,
        base_model_version, model_version, results, framework)
    VALUES (CAST(:uid AS uuid), 'acme', 'orgs/acme/trainings/old/runs/' || :id, :id, 'orgs/acme/trainings/old', 1, '',
        :time, :time, '{"team": "red"}', 'users/alice', 'orgs/acme/training/tasks/' || :id, CAST(:spec AS jsonb),
        'orgs/acme/datasets/d/versions/1', '', '', '', 'orgs/acme/modelProjects/p', '', '',
        CAST(:results AS jsonb), '{}')
    """
)
_TASK = text(
    """
    INSERT INTO tasks (uid, org, name, kind, target, creator, labels, input, state, max_attempts)
    VALUES (CAST(:uid AS uuid), 'acme', 'orgs/acme/training/tasks/' || :id, 'training.run', '', 'users/alice', '{}',
        '{}', 'SUCCEEDED', 1)
    """
)


async def before_lists_had_terms(url: str, folder: Path, count: int) -> None:
    """A database at 0002 with so many runs that have succeeded; the loss of the first is 0.0."""
    versions = folder / "versions"
    versions.mkdir(parents=True)
    assert DEFINITION.migrations is not None
    for path in (DEFINITION.migrations / "versions").glob("000[12]_*.py"):
        shutil.copy(path, versions)
    await migrate(url, folder)
    old = tiny_spec().to_json()
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("SELECT set_config('argosy.org', '*', true)"))
        for number in range(count):
            values: dict[str, Any] = {"uid": uuid7(), "id": str(number + 1)}
            await connection.execute(_TASK, values)
            spec, results = json.dumps(old | {"seed": number}), json.dumps({"sft.last_loss": number / 4})
            await connection.execute(
                _RUN, values | {"time": datetime(2026, 1, 2, tzinfo=UTC), "spec": spec, "results": results}
            )
    await engine.dispose()


async def test_runs_from_before_lists_had_terms_are_found(
    mesh: Any, dataset: FakeDataset, tmp_path: Path, database_url: str
) -> None:
    await before_lists_had_terms(database_url, tmp_path / "old", 5)
    async with training_service(mesh, tmp_path, database_url) as service:
        caller = Caller(mesh, service=service)

        async def listed(condition: str, order_by: str = "") -> list[str]:
            request = pb.ListTrainingRunsRequest(
                parent="orgs/acme/trainings/-", filter=condition, order_by=order_by, page_size=2
            )
            found: list[str] = []
            while True:
                page = await caller.ListTrainingRuns(request)
                found += [run.name.rpartition("/")[2] for run in page.training_runs]
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    return found

        assert sorted(await listed("")) == ["1", "2", "3", "4", "5"]
        by_loss = await listed("state = SUCCEEDED AND labels.team = red", "results.sft.last_loss desc")
        assert by_loss == ["5", "4", "3", "2", "1"]
        assert await listed("spec.seed = 3") == ["4"]
        assert await listed("results.sft.last_loss < 0.3", "results.sft.last_loss") == ["1", "2"]

        # As if each had been stored today.
        async with service.app.database.system(read_only=True) as uow:
            (run,) = (await TrainingRuns(uow).list("orgs/acme/trainings/old", 1))[0]
            rows = await (await uow.connection()).execute(
                text("SELECT term, value FROM run_terms WHERE run_uid = CAST(:uid AS uuid)"), {"uid": run.uid}
            )
            assert {row.term: row.value for row in rows} == terms_of(run)
        await caller.close()
