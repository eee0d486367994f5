"""Runs from before 0003 get the terms by which lists find them."""

from __future__ import annotations

from alembic import op
from sqlalchemy import exists, insert, select

from services.training.domain.spec import TrainingSpec
from services.training.domain.trainings import TrainingRun
from services.training.store import tables
from services.training.store.run_search import terms_of

revision = "0012"
down_revision = "0011"

# All that a run is found by. Named one by one: a column that a later migration adds is not there yet.
_COLUMNS = (
    "uid",
    "name",
    "state",
    "creator",
    "create_time",
    "update_time",
    "labels",
    "results",
    "spec",
    "dataset_version",
    "validation_version",
    "model_project",
    "base_model_version",
    "algorithm_version",
    "parameters",
    "outside",
)
_AT_ONCE = 200


def upgrade() -> None:
    connection, columns, terms = op.get_bind(), tables.training_runs.c, tables.run_terms
    known = exists().where(terms.c.run_uid == columns.uid)
    query = select(*(columns[name] for name in _COLUMNS)).where(~known).limit(_AT_ONCE)
    # A run with terms is not found again; each has one at least, its time.
    while rows := connection.execute(query).mappings().all():
        connection.execute(
            insert(terms),
            [
                {"run_uid": row["uid"], "term": term, "value": value}
                for row in rows
                for term, value in terms_of(TrainingRun(**{**row, "spec": TrainingSpec.from_json(row["spec"])})).items()
            ],
        )
