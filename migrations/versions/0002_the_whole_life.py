"""The whole life of a batch: reopening, reasons, alerts, summaries, deadlines."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

BATCH_STATUS_VIEW = """
CREATE VIEW batch_status AS
SELECT batch_id, coalesce(outcome, state) AS status, state, outcome, finalized_by, revision, generation, name, metadata,
       sealed, total, answered, succeeded, partial, failed, skipped, retrying, missing, unexpected,
       created, updated, unchanged, duplicates, late,
       CASE WHEN state = 'finalized' AND missing = 0 THEN 100.0
            WHEN total IS NULL THEN NULL
            WHEN total = 0 THEN 100.0
            ELSE round(least(100.0 * (total - missing) / total, 100.0), 1) END AS progress_percent,
       CASE WHEN failed = 0 THEN NULL
            WHEN failed = total THEN format('All %s failed', failed)
            WHEN total IS NULL THEN format('%s failed', failed)
            ELSE format('%s of %s failed', failed, total) END AS error_summary,
       deadline_at, retry_of, opened_at, first_result_at, last_result_at, completed_at, finalized_at, published_at,
       partition, decided_offset, policy, reopened_at, reason, error, summary_state
FROM (
    SELECT b.*,
           CASE WHEN b.state = 'finalized' THEN s.state END AS summary_state,
           succeeded + partial + failed + skipped AS answered,
           coalesce(expected, total_items,
                    CASE WHEN b.state = 'finalized' THEN succeeded + partial + failed + skipped END) AS total,
           CASE WHEN expected IS NOT NULL THEN expected - matched
                ELSE greatest(0, coalesce(total_items, 0) - (succeeded + partial + failed + skipped)) END AS missing,
           CASE WHEN expected IS NOT NULL THEN succeeded + partial + failed + skipped - matched
                WHEN total_items IS NULL THEN 0
                ELSE greatest(0, succeeded + partial + failed + skipped - total_items) END AS unexpected
    FROM batches b LEFT JOIN summaries s ON s.batch_id = b.batch_id
) counted
"""

BATCH_STATUS_VIEW_BEFORE = """
CREATE VIEW batch_status AS
SELECT batch_id, coalesce(outcome, state) AS status, state, outcome, finalized_by, revision, generation, name, metadata,
       sealed, total, answered, succeeded, partial, failed, skipped, retrying, missing, unexpected,
       created, updated, unchanged, duplicates, late,
       CASE WHEN state = 'finalized' AND missing = 0 THEN 100.0
            WHEN total IS NULL THEN NULL
            WHEN total = 0 THEN 100.0
            ELSE round(least(100.0 * (total - missing) / total, 100.0), 1) END AS progress_percent,
       CASE WHEN failed = 0 THEN NULL
            WHEN failed = total THEN format('All %s failed', failed)
            WHEN total IS NULL THEN format('%s failed', failed)
            ELSE format('%s of %s failed', failed, total) END AS error_summary,
       deadline_at, retry_of, opened_at, first_result_at, last_result_at, completed_at, finalized_at, published_at,
       partition, decided_offset
FROM (
    SELECT b.*,
           succeeded + partial + failed + skipped AS answered,
           coalesce(expected, total_items,
                    CASE WHEN state = 'finalized' THEN succeeded + partial + failed + skipped END) AS total,
           CASE WHEN expected IS NOT NULL THEN expected - matched
                ELSE greatest(0, coalesce(total_items, 0) - (succeeded + partial + failed + skipped)) END AS missing,
           CASE WHEN expected IS NOT NULL THEN succeeded + partial + failed + skipped - matched
                WHEN total_items IS NULL THEN 0
                ELSE greatest(0, succeeded + partial + failed + skipped - total_items) END AS unexpected
    FROM batches b
) counted
"""


def upgrade() -> None:
    op.add_column(
        "batches",
        sa.Column("reopened_at", sa.DateTime(timezone=True), comment="when its present generation began"),
    )
    op.add_column(
        "batches",
        sa.Column(
            "reason", sa.Text(), comment="why it was cancelled, ended as it stood, or reopened: what was said last"
        ),
    )
    op.add_column(
        "batches",
        sa.Column("error", postgresql.JSON(astext_type=sa.Text()), comment="the critical error that aborted it"),
    )
    op.add_column(
        "batches",
        sa.Column(
            "failure_seen",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="batch.first_failure is out",
        ),
    )
    op.add_column(
        "batches",
        sa.Column(
            "threshold_exceeded",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="batch.failure_threshold_exceeded is out",
        ),
    )
    # A first failure before this version is not announced any more.
    op.execute("UPDATE batches SET failure_seen = true WHERE failed > 0")
    op.create_index(
        "batches_deadlines",
        "batches",
        ["deadline_at", "batch_id"],
        postgresql_where=sa.text("outcome IS NULL AND deadline_at IS NOT NULL"),
    )
    op.create_index("batches_open", "batches", ["batch_id"], postgresql_where=sa.text("outcome IS NULL"))
    op.create_table(
        "summaries",
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False, comment="the one to summarize, or summarized"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column(
            "requested_at",
            sa.DateTime(timezone=True),
            nullable=False,
            comment="append time of the record that asked for it",
        ),
        sa.Column("requested_offset", sa.BigInteger(), nullable=False, comment="its offset"),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False, comment="failed ones"),
        sa.Column(
            "retry_at",
            sa.DateTime(timezone=True),
            comment="when the next attempt is due; a wall clock's time",
        ),
        sa.Column("problem", sa.Text(), comment="why the last attempt failed"),
        sa.Column("summary", postgresql.JSON(astext_type=sa.Text()), comment="the newest one there is, as published"),
        sa.CheckConstraint("state IN ('pending', 'ready', 'failed')", name=op.f("summaries_state_known")),
        sa.CheckConstraint("state <> 'ready' OR summary IS NOT NULL", name=op.f("summaries_ready_is_there")),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("summaries_pkey")),
    )
    op.create_index(
        "summaries_pending",
        "summaries",
        ["requested_at", "batch_id"],
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_index(
        "outbox_published",
        "outbox",
        ["published_at"],
        postgresql_where=sa.text("published_at IS NOT NULL AND value IS NOT NULL"),
    )
    op.create_index(
        "dead_letters_published",
        "dead_letters",
        ["published_at"],
        postgresql_where=sa.text("published_at IS NOT NULL"),
    )
    for table in ("batches", "outbox", "dead_letters", "summaries"):
        op.execute(
            f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000)"
        )
    op.execute("DROP VIEW batch_status")
    op.execute(BATCH_STATUS_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW batch_status")
    op.drop_table("summaries")
    for table in ("batches", "outbox", "dead_letters"):
        op.execute(f"ALTER TABLE {table} RESET (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold)")
    op.drop_index("dead_letters_published", table_name="dead_letters")
    op.drop_index("outbox_published", table_name="outbox")
    op.drop_index("batches_open", table_name="batches")
    op.drop_index("batches_deadlines", table_name="batches")
    for column in ("threshold_exceeded", "failure_seen", "error", "reason", "reopened_at"):
        op.drop_column("batches", column)
    op.execute(BATCH_STATUS_VIEW_BEFORE)
