"""Batches whose items are no longer kept."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

COLUMNS = "partition, decided_offset, policy, reopened_at, reason, error, summary_state"

VIEW = """
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
       {columns}
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


def upgrade() -> None:
    op.add_column(
        "batches",
        sa.Column(
            "pruned_at",
            sa.DateTime(timezone=True),
            comment="since then its items are not kept; append time of the record that said so",
        ),
    )
    op.create_check_constraint(
        op.f("batches_pruned_is_finalized"), "batches", "pruned_at IS NULL OR state = 'finalized'"
    )
    op.execute("DROP VIEW batch_status")
    op.execute(VIEW.format(columns=f"{COLUMNS}, pruned_at"))


def downgrade() -> None:
    op.execute("DROP VIEW batch_status")
    op.drop_constraint(op.f("batches_pruned_is_finalized"), "batches")
    op.drop_column("batches", "pruned_at")
    op.execute(VIEW.format(columns=COLUMNS))
