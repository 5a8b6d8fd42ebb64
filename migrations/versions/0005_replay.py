"""What replays need to know, and what became of dead letters."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column(
        "positions",
        sa.Column("first_offset", sa.BigInteger(), comment="where reading began; null: before this was noted"),
    )
    op.create_table(
        "incomplete_history",
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("incomplete_history_pkey")),
    )
    op.add_column(
        "dead_letters",
        sa.Column("redriven_at", sa.DateTime(timezone=True), comment="when an operator sent it to the log again"),
    )
    op.add_column(
        "dead_letters",
        sa.Column("discarded_at", sa.DateTime(timezone=True), comment="when an operator gave it up"),
    )
    op.add_column("dead_letters", sa.Column("discard_reason", sa.Text(), comment="why"))
    op.create_check_constraint(
        op.f("dead_letters_discarded_for_a_reason"),
        "dead_letters",
        "(discarded_at IS NULL) = (discard_reason IS NULL)",
    )


def downgrade() -> None:
    op.drop_constraint(op.f("dead_letters_discarded_for_a_reason"), "dead_letters")
    for column in ("discard_reason", "discarded_at", "redriven_at"):
        op.drop_column("dead_letters", column)
    op.drop_table("incomplete_history")
    op.drop_column("positions", "first_offset")
