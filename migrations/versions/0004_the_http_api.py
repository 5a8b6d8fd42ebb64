"""The HTTP API: keys, sessions, audit, idempotency, and indexes for lists and for what was decided since."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

OPENING: tuple[sa.ColumnElement[object], ...] = (
    sa.literal_column("coalesce(opened_at, first_result_at, finalized_at) DESC NULLS LAST"),
    sa.literal_column("batch_id DESC"),
)


def upgrade() -> None:
    op.create_index("batches_by_status", "batches", [sa.literal_column("coalesce(outcome, state)"), *OPENING])
    op.create_index(
        "batches_by_name",
        "batches",
        ["name", *OPENING],
        postgresql_where=sa.text("name IS NOT NULL"),
    )
    op.create_index(
        "batches_by_decision",
        "batches",
        ["partition", "decided_offset"],
        postgresql_where=sa.text("decided_offset IS NOT NULL"),
    )
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False, comment="whose it is, for people"),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column(
            "hash",
            sa.LargeBinary(),
            nullable=False,
            comment="sha256 of the key, which is random and stored nowhere",
        ),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("role IN ('viewer', 'operator', 'admin')", name=op.f("api_keys_role_known")),
        sa.PrimaryKeyConstraint("key_id", name=op.f("api_keys_pkey")),
    )
    op.create_index("api_keys_by_hash", "api_keys", ["hash"], unique=True)
    op.create_table(
        "api_sessions",
        sa.Column("hash", sa.LargeBinary(), nullable=False, comment="sha256 of the cookie"),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("api_sessions_pkey")),
    )
    op.create_index("api_sessions_by_end", "api_sessions", ["expires_at"])
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False, comment="the key's name; anonymous where authentication is off"),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=True),
        sa.Column("items", sa.Integer(), nullable=True, comment="how many items it concerned, as far as known"),
        sa.Column("partition", sa.Integer(), nullable=True, comment="where on rollcall.events its last record is"),
        sa.Column("record_offset", sa.BigInteger(), nullable=True, comment="null: no record was acknowledged"),
        sa.PrimaryKeyConstraint("seq", name=op.f("audit_pkey")),
    )
    op.create_index("audit_by_batch", "audit", ["batch_id", "seq"], postgresql_where=sa.text("batch_id IS NOT NULL"))
    op.create_table(
        "idempotency_keys",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False, comment="sha256 of what was asked"),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "claimed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="somebody is at it; null: nobody any more",
        ),
        sa.Column("status", sa.Integer(), nullable=True, comment="of the answer; null: there is none yet"),
        sa.Column("location", sa.Text(), nullable=True),
        sa.Column("body", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("caller", "key", name=op.f("idempotency_keys_pkey")),
    )
    op.create_index("idempotency_keys_by_age", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    for table in ("idempotency_keys", "audit", "api_sessions", "api_keys"):
        op.drop_table(table)
    for index in ("batches_by_decision", "batches_by_name", "batches_by_status"):
        op.drop_index(index, table_name="batches")
