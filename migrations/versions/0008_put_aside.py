"""What is put aside for good, found without a walk over all that has left."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_TABLES = ("outbox", "dead_letters")


def upgrade() -> None:
    for table in _TABLES:
        refused = sa.text("published_at IS NULL AND refused IS NOT NULL")
        op.create_index(f"{table}_refused", table, ["seq"], postgresql_where=refused)


def downgrade() -> None:
    for table in _TABLES:
        op.drop_index(f"{table}_refused", table_name=table)
