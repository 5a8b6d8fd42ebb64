"""The stream: batches, items, outbox, positions, dead letters."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

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
    op.create_table(
        "batches",
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False, comment="the batch's home on rollcall.events"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("finalized_by", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.Column("generation", sa.Integer(), server_default="0", nullable=False),
        sa.Column("sealed", sa.Boolean(), nullable=False),
        sa.Column("total_items", sa.Integer(), nullable=True, comment="the total as given"),
        sa.Column("expected", sa.Integer(), nullable=True, comment="ids on the manifest; null: there is none"),
        sa.Column(
            "matched", sa.Integer(), server_default="0", nullable=False, comment="answered items on the manifest"
        ),
        sa.Column("succeeded", sa.Integer(), server_default="0", nullable=False),
        sa.Column("partial", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failed", sa.Integer(), server_default="0", nullable=False),
        sa.Column("skipped", sa.Integer(), server_default="0", nullable=False),
        sa.Column("retrying", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created", sa.Integer(), server_default="0", nullable=False),
        sa.Column("updated", sa.Integer(), server_default="0", nullable=False),
        sa.Column("unchanged", sa.Integer(), server_default="0", nullable=False),
        sa.Column("duplicates", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("late", sa.Integer(), server_default="0", nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("metadata", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("policy", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("retry_of", sa.Text(collation="C"), nullable=True),
        sa.Column("request_retry", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("first_result_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_result_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_result_offset", sa.BigInteger(), nullable=True),
        sa.Column("last_answer_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "completed_at", sa.DateTime(timezone=True), nullable=True, comment="the last answer of a finalized batch"
        ),
        sa.Column(
            "finalized_at", sa.DateTime(timezone=True), nullable=True, comment="append time of the record that decided"
        ),
        sa.Column("decided_offset", sa.BigInteger(), nullable=True, comment="its offset"),
        sa.Column(
            "published_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="the broker acknowledged the event; a wall clock's time",
        ),
        sa.CheckConstraint(
            "(state = 'finalized') = (finalized_at IS NOT NULL) AND (state = 'finalized') = (outcome IS NOT NULL) AND (state = 'finalized') = (finalized_by IS NOT NULL) AND (state = 'finalized') = (decided_offset IS NOT NULL)",
            name=op.f("batches_finalized_at_its_time"),
        ),
        sa.CheckConstraint("completed_at IS NULL OR state = 'finalized'", name=op.f("batches_completed_is_finalized")),
        sa.CheckConstraint(
            "finalized_by IN ('all_items_in', 'deadline', 'cancelled', 'aborted', 'forced')",
            name=op.f("batches_finalized_by_known"),
        ),
        sa.CheckConstraint(
            "outcome IN ('completed', 'completed_with_errors', 'failed', 'cancelled', 'expired')",
            name=op.f("batches_outcome_known"),
        ),
        sa.CheckConstraint("state <> 'pending' OR first_result_at IS NULL", name=op.f("batches_pending_has_no_result")),
        sa.CheckConstraint(
            "state <> 'processing' OR first_result_at IS NOT NULL", name=op.f("batches_processing_has_a_result")
        ),
        sa.CheckConstraint("state IN ('pending', 'processing', 'finalized')", name=op.f("batches_state_known")),
        sa.CheckConstraint("matched <= coalesce(expected, 0)", name=op.f("batches_matched_is_expected")),
        sa.CheckConstraint("published_at IS NULL OR revision > 0", name=op.f("batches_published_has_a_revision")),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("batches_pkey")),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index(
        "batches_by_opening",
        "batches",
        [
            sa.literal_column("coalesce(opened_at, first_result_at, finalized_at) DESC NULLS LAST"),
            sa.literal_column("batch_id DESC"),
        ],
        unique=False,
    )
    op.create_table(
        "dead_letters",
        sa.Column("topic", sa.Text(), nullable=False, comment="where the record was first read"),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("record_offset", sa.BigInteger(), nullable=False),
        sa.Column("appended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=True),
        sa.Column("key", sa.LargeBinary(), nullable=True),
        sa.Column("value", sa.LargeBinary(), nullable=True),
        sa.Column(
            "headers",
            postgresql.JSON(astext_type=sa.Text()),
            nullable=False,
            comment="the original ones: [name, base64 of the value] each",
        ),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("published_partition", sa.Integer(), nullable=True),
        sa.Column("published_offset", sa.BigInteger(), nullable=True),
        sa.Column("refused", sa.Text(), nullable=True, comment="why the broker refused it for good"),
        sa.PrimaryKeyConstraint("topic", "partition", "record_offset", name=op.f("dead_letters_pkey")),
    )
    op.create_index(
        "dead_letters_by_batch",
        "dead_letters",
        ["batch_id"],
        unique=False,
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )
    op.create_index(
        "dead_letters_unpublished",
        "dead_letters",
        ["seq"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL AND refused IS NULL"),
    )
    op.create_table(
        "expected_items",
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("item_id", sa.Text(collation="C"), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", "item_id", name=op.f("expected_items_pkey")),
    )
    op.create_table(
        "item_results",
        sa.Column("version", sa.BigInteger(), nullable=False, comment="offset on the batch's home partition"),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, comment="append time of the record"),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("item_id", sa.Text(collation="C"), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("effect", sa.Text(), nullable=True),
        sa.Column("duration_ms", sa.Double(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("stack_trace", sa.Text(), nullable=True),
        sa.Column("output", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("metrics", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column(
            "occurred_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="the upstream's claim; shown, never decided by",
        ),
        sa.CheckConstraint(
            "status IN ('succeeded', 'partial', 'failed', 'skipped', 'retrying')",
            name=op.f("item_results_status_known"),
        ),
        sa.PrimaryKeyConstraint("batch_id", "item_id", name=op.f("item_results_pkey")),
    )
    op.create_index(
        "item_results_failed",
        "item_results",
        ["batch_id", "item_id"],
        unique=False,
        postgresql_where=sa.text("status = 'failed'"),
    )
    op.create_table(
        "late_results",
        sa.Column("version", sa.BigInteger(), nullable=False, comment="offset on the batch's home partition"),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False, comment="append time of the record"),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=False),
        sa.Column("item_id", sa.Text(collation="C"), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("effect", sa.Text(), nullable=True),
        sa.Column("duration_ms", sa.Double(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("stack_trace", sa.Text(), nullable=True),
        sa.Column("output", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("metrics", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column(
            "occurred_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="the upstream's claim; shown, never decided by",
        ),
        sa.CheckConstraint(
            "status IN ('succeeded', 'partial', 'failed', 'skipped', 'retrying')",
            name=op.f("late_results_status_known"),
        ),
        sa.PrimaryKeyConstraint("batch_id", "item_id", name=op.f("late_results_pkey")),
    )
    op.create_table(
        "logs",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column(
            "partition_count",
            sa.Integer(),
            nullable=False,
            comment="as of the first start: it fixes every batch's home",
        ),
        sa.CheckConstraint("partition_count > 0", name=op.f("logs_partition_count_positive")),
        sa.PrimaryKeyConstraint("topic", name=op.f("logs_pkey")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", sa.Text(collation="C"), nullable=False, comment="the event's deterministic ce_id"),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False, comment="the topic, without prefix"),
        sa.Column("batch_id", sa.Text(collation="C"), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=True),
        sa.Column(
            "value", sa.Text(), nullable=True, comment="the record's value, JSON; null where only the topic knows it"
        ),
        sa.Column("headers", postgresql.JSON(astext_type=sa.Text()), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("published_partition", sa.Integer(), nullable=True),
        sa.Column("published_offset", sa.BigInteger(), nullable=True),
        sa.Column("refused", sa.Text(), nullable=True, comment="why the broker refused it for good"),
        sa.CheckConstraint(
            "channel IN ('finalized', 'summaries', 'alerts', 'requests')", name=op.f("outbox_channel_known")
        ),
        sa.CheckConstraint(
            "value IS NOT NULL OR published_at IS NOT NULL", name=op.f("outbox_unpublished_has_a_value")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("outbox_pkey")),
    )
    op.create_index(
        "outbox_revisions",
        "outbox",
        ["batch_id", "revision"],
        unique=False,
        postgresql_where=sa.text("channel = 'finalized'"),
    )
    op.create_index(
        "outbox_unpublished",
        "outbox",
        ["seq"],
        unique=False,
        postgresql_where=sa.text("published_at IS NULL AND refused IS NULL"),
    )
    op.create_table(
        "positions",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column(
            "next_offset", sa.BigInteger(), nullable=False, comment="everything before it is applied (or, out, known)"
        ),
        sa.Column(
            "last_offset",
            sa.BigInteger(),
            nullable=True,
            comment="the last record applied; with its time and checksum it proves the log",
        ),
        sa.Column("last_timestamp", sa.BigInteger(), nullable=True, comment="milliseconds since 1970"),
        sa.Column("last_checksum", sa.BigInteger(), nullable=True, comment="crc32 of key and value"),
        sa.Column(
            "taken",
            postgresql.JSON(astext_type=sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
            comment="source partition -> highest original offset taken by forwarding",
        ),
        sa.PrimaryKeyConstraint("topic", "partition", name=op.f("positions_pkey")),
        postgresql_with={"fillfactor": "50"},
    )
    op.execute(BATCH_STATUS_VIEW)


def downgrade() -> None:
    op.execute("DROP VIEW batch_status")
    op.drop_table("positions")
    op.drop_index(
        "outbox_unpublished", table_name="outbox", postgresql_where=sa.text("published_at IS NULL AND refused IS NULL")
    )
    op.drop_index("outbox_revisions", table_name="outbox", postgresql_where=sa.text("channel = 'finalized'"))
    op.drop_table("outbox")
    op.drop_table("logs")
    op.drop_table("late_results")
    op.drop_index("item_results_failed", table_name="item_results", postgresql_where=sa.text("status = 'failed'"))
    op.drop_table("item_results")
    op.drop_table("expected_items")
    op.drop_index(
        "dead_letters_unpublished",
        table_name="dead_letters",
        postgresql_where=sa.text("published_at IS NULL AND refused IS NULL"),
    )
    op.drop_index("dead_letters_by_batch", table_name="dead_letters", postgresql_where=sa.text("batch_id IS NOT NULL"))
    op.drop_table("dead_letters")
    op.drop_index("batches_by_opening", table_name="batches")
    op.drop_table("batches")
