"""Dead letters of a batch, also those that only their key says are its."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # A hash: keys may be longer than a B-tree takes.
    op.create_index(
        "dead_letters_by_key",
        "dead_letters",
        ["key"],
        postgresql_using="hash",
        postgresql_where=sa.text("batch_id IS NULL AND key IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("dead_letters_by_key", table_name="dead_letters")
