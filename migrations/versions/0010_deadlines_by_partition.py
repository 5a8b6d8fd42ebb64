"""Passed deadlines are looked for by partition: one that nobody reads holds up no other's."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_IS_OPEN = sa.text("outcome IS NULL AND deadline_at IS NOT NULL")


def upgrade() -> None:
    _index(["partition", "deadline_at", "batch_id"])


def downgrade() -> None:
    _index(["deadline_at", "batch_id"])


def _index(columns: list[str]) -> None:
    op.drop_index("batches_deadlines", table_name="batches")
    op.create_index("batches_deadlines", "batches", columns, postgresql_where=_IS_OPEN)
