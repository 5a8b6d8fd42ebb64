"""Half of each page of ``batches`` left free, so that marking a new batch as published stays HOT."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("ALTER TABLE batches SET (fillfactor = 50)")


def downgrade() -> None:
    op.execute("ALTER TABLE batches SET (fillfactor = 70)")
