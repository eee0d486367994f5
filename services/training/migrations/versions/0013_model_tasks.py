"""What a model version does."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("model_versions", Column("task", Text, nullable=False, server_default=""))
    op.alter_column("model_versions", "task", server_default=None)
    # Of those that an algorithm made, its name is known here, and not its task; of imported ones nothing is.
    op.execute(
        """
        UPDATE model_versions SET task = CASE
            WHEN run.algorithm_version <> '' THEN split_part(run.algorithm_version, '/', 4)
            WHEN run.spec -> 'phases' -> -1 ->> 'method' = 'reward' THEN 'reward'
            ELSE 'text-generation'
        END
        FROM training_runs AS run WHERE run.name = model_versions.training_run AND NOT run.outside
        """
    )
