"""Whether a request under an Idempotency-Key has come so far as to send."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    sending = sa.Column(
        "sending",
        sa.Boolean,
        nullable=False,
        server_default=sa.text("false"),
        comment="a try came so far as to send",
    )
    op.add_column("idempotency_keys", sending)
    # Tries that are not over may have sent: nothing says that they have not.
    op.execute("UPDATE idempotency_keys SET sending = true WHERE status IS NULL")


def downgrade() -> None:
    op.drop_column("idempotency_keys", "sending")
