"""Terms go straight into their index: one that keeps a list of pending entries reads all of it in every search."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.execute("ALTER INDEX ix_dataset_terms_terms SET (fastupdate = off)")
    op.execute("SELECT gin_clean_pending_list('ix_dataset_terms_terms')")
