"""The declared schema (SQLAlchemy Core). Migrations must arrive at exactly this; a test compares the two.

Tables name no schema: every connection's ``search_path`` is the installation's one (see ``store.connection``).
Ids are ``COLLATE "C"``: compared bytewise, so that order is one and the same everywhere, and cheap.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSON

metadata = MetaData(
    naming_convention={
        "ck": "%(table_name)s_%(constraint_name)s",
        "pk": "%(table_name)s_pkey",
        "ix": "%(column_0_label)s",
    }
)

_Id = Text(collation="C")
_Time = DateTime(timezone=True)

# Rows that are written, change a few times and rest, or go: vacuum by their number, not by the size of what rests.
_VACUUMED_OFTEN = {"autovacuum_vacuum_scale_factor": "0.01", "autovacuum_vacuum_threshold": "5000"}


def _count(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default="0")


_OPENING = (text("coalesce(opened_at, first_result_at, finalized_at) DESC NULLS LAST"), text("batch_id DESC"))
"""The newest batches first."""

batches = Table(
    "batches",
    metadata,
    Column("batch_id", _Id, nullable=False),
    Column("partition", Integer, nullable=False, comment="the batch's home on rollcall.events"),
    Column("state", Text, nullable=False),
    Column("outcome", Text),
    Column("finalized_by", Text),
    _count("revision"),
    _count("generation"),
    Column("sealed", Boolean, nullable=False),
    Column("total_items", Integer, comment="the total as given"),
    Column("expected", Integer, comment="ids on the manifest; null: there is none"),
    Column("matched", Integer, nullable=False, server_default="0", comment="answered items on the manifest"),
    _count("succeeded"),
    _count("partial"),
    _count("failed"),
    _count("skipped"),
    _count("retrying"),
    _count("created"),
    _count("updated"),
    _count("unchanged"),
    Column("duplicates", BigInteger, nullable=False, server_default="0"),
    _count("late"),
    Column("name", Text),
    # json, not jsonb: the text comes back as it went in, so that events do not depend on when a batch was read.
    Column("metadata", JSON),
    Column("policy", JSON),
    Column("deadline_at", _Time),
    Column("retry_of", _Id),
    Column("request_retry", Boolean, nullable=False, server_default=text("false")),
    Column("opened_at", _Time),
    Column("first_result_at", _Time),
    Column("last_result_at", _Time),
    Column("last_result_offset", BigInteger),
    Column("last_answer_at", _Time),
    Column("completed_at", _Time, comment="the last answer of a finalized batch"),
    Column("finalized_at", _Time, comment="append time of the record that decided"),
    Column("decided_offset", BigInteger, comment="its offset"),
    Column("published_at", _Time, comment="the broker acknowledged the event; a wall clock's time"),
    Column("reopened_at", _Time, comment="when its present generation began"),
    Column("reason", Text, comment="why it was cancelled, ended as it stood, or reopened: what was said last"),
    Column("error", JSON, comment="the critical error that aborted it"),
    Column("failure_seen", Boolean, nullable=False, server_default=text("false"), comment="batch.first_failure is out"),
    Column(
        "threshold_exceeded",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="batch.failure_threshold_exceeded is out",
    ),
    Column("pruned_at", _Time, comment="since then its items are not kept; append time of the record that said so"),
    PrimaryKeyConstraint("batch_id"),
    CheckConstraint("state IN ('pending', 'processing', 'finalized')", name="state_known"),
    CheckConstraint(
        "outcome IN ('completed', 'completed_with_errors', 'failed', 'cancelled', 'expired')", name="outcome_known"
    ),
    CheckConstraint(
        "finalized_by IN ('all_items_in', 'deadline', 'cancelled', 'aborted', 'forced')", name="finalized_by_known"
    ),
    CheckConstraint(
        "(state = 'finalized') = (finalized_at IS NOT NULL) AND (state = 'finalized') = (outcome IS NOT NULL)"
        " AND (state = 'finalized') = (finalized_by IS NOT NULL)"
        " AND (state = 'finalized') = (decided_offset IS NOT NULL)",
        name="finalized_at_its_time",
    ),
    CheckConstraint("state <> 'pending' OR first_result_at IS NULL", name="pending_has_no_result"),
    CheckConstraint("state <> 'processing' OR first_result_at IS NOT NULL", name="processing_has_a_result"),
    CheckConstraint("completed_at IS NULL OR state = 'finalized'", name="completed_is_finalized"),
    CheckConstraint("published_at IS NULL OR revision > 0", name="published_has_a_revision"),
    CheckConstraint("matched <= coalesce(expected, 0)", name="matched_is_expected"),
    CheckConstraint("pruned_at IS NULL OR state = 'finalized'", name="pruned_is_finalized"),
    Index("batches_by_opening", *_OPENING),
    # What the clock looks for. The columns change with a batch's state, not with its counts: those updates stay HOT.
    Index(
        "batches_deadlines",
        "partition",
        "deadline_at",
        "batch_id",
        postgresql_where=text("outcome IS NULL AND deadline_at IS NOT NULL"),
    ),
    Index("batches_open", "batch_id", postgresql_where=text("outcome IS NULL")),
    # What lists ask for, and what was decided since a place in the log. Neither changes with a batch's counts.
    Index("batches_by_status", text("coalesce(outcome, state)"), *_OPENING),
    Index("batches_by_name", "name", *_OPENING, postgresql_where=text("name IS NOT NULL")),
    Index("batches_by_decision", "partition", "decided_offset", postgresql_where=text("decided_offset IS NOT NULL")),
    # Room on the page for each row once more, so that updates stay HOT: of counts, and of what was published.
    postgresql_with={**_VACUUMED_OFTEN, "fillfactor": "50"},
)


def _items_table(name: str, *constraints: Index | CheckConstraint) -> Table:
    """``item_results`` and ``late_results`` hold the same register; wide columns first, to waste no padding."""
    return Table(
        name,
        metadata,
        Column("version", BigInteger, nullable=False, comment="offset on the batch's home partition"),
        Column("received_at", _Time, nullable=False, comment="append time of the record"),
        Column("attempt", Integer, nullable=False),
        Column("generation", Integer, nullable=False),
        Column("batch_id", _Id, nullable=False),
        Column("item_id", _Id, nullable=False),
        Column("status", Text, nullable=False),
        Column("effect", Text),
        Column("duration_ms", Double),
        Column("message", Text),
        Column("error_code", Text),
        Column("error_message", Text),
        Column("stack_trace", Text),
        Column("output", JSON),
        Column("metrics", JSON),
        Column("worker", Text),
        Column("occurred_at", _Time, comment="the upstream's claim; shown, never decided by"),
        PrimaryKeyConstraint("batch_id", "item_id"),
        CheckConstraint(
            "status IN ('succeeded', 'partial', 'failed', 'skipped', 'retrying')",
            name="status_known",
        ),
        *constraints,
    )


item_results = _items_table(
    "item_results",
    Index("item_results_failed", "batch_id", "item_id", postgresql_where=text("status = 'failed'")),
)

late_results = _items_table("late_results")

expected_items = Table(
    "expected_items",
    metadata,
    Column("batch_id", _Id, nullable=False),
    Column("item_id", _Id, nullable=False),
    PrimaryKeyConstraint("batch_id", "item_id"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", _Id, nullable=False, comment="the event's deterministic ce_id"),
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    Column("channel", Text, nullable=False, comment="the topic, without prefix"),
    Column("batch_id", _Id),
    Column("revision", Integer),
    Column("value", Text, comment="the record's value, JSON; null where only the topic knows it"),
    Column("headers", JSON),
    Column("published_at", _Time),
    Column("published_partition", Integer),
    Column("published_offset", BigInteger),
    Column("refused", Text, comment="why the broker refused it for good"),
    PrimaryKeyConstraint("id"),
    CheckConstraint("channel IN ('finalized', 'summaries', 'alerts', 'requests')", name="channel_known"),
    CheckConstraint("value IS NOT NULL OR published_at IS NOT NULL", name="unpublished_has_a_value"),
    Index("outbox_revisions", "batch_id", "revision", postgresql_where=text("channel = 'finalized'")),
    Index("outbox_unpublished", "seq", postgresql_where=text("published_at IS NULL AND refused IS NULL")),
    # What is put aside for good.
    Index("outbox_refused", "seq", postgresql_where=text("published_at IS NULL AND refused IS NOT NULL")),
    # What trimming looks for, and which mark is the newest.
    Index("outbox_published", "published_at", postgresql_where=text("published_at IS NOT NULL AND value IS NOT NULL")),
    postgresql_with=_VACUUMED_OFTEN,
)

dead_letters = Table(
    "dead_letters",
    metadata,
    Column("topic", Text, nullable=False, comment="where the record was first read"),
    Column("partition", Integer, nullable=False),
    Column("record_offset", BigInteger, nullable=False),
    Column("appended_at", _Time, nullable=False),
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("batch_id", _Id),
    Column("key", LargeBinary),
    Column("value", LargeBinary),
    Column("headers", JSON, nullable=False, comment="the original ones: [name, base64 of the value] each"),
    Column("published_at", _Time),
    Column("published_partition", Integer),
    Column("published_offset", BigInteger),
    Column("refused", Text, comment="why the broker refused it for good"),
    Column("redriven_at", _Time, comment="when an operator sent it to the log again"),
    Column("discarded_at", _Time, comment="when an operator gave it up"),
    Column("discard_reason", Text, comment="why"),
    PrimaryKeyConstraint("topic", "partition", "record_offset"),
    CheckConstraint("(discarded_at IS NULL) = (discard_reason IS NULL)", name="discarded_for_a_reason"),
    Index("dead_letters_unpublished", "seq", postgresql_where=text("published_at IS NULL AND refused IS NULL")),
    # What is put aside for good.
    Index("dead_letters_refused", "seq", postgresql_where=text("published_at IS NULL AND refused IS NOT NULL")),
    Index("dead_letters_by_batch", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
    # What cannot be parsed names no batch, but its key most likely does. A hash: keys may be of any length.
    Index(
        "dead_letters_by_key",
        "key",
        postgresql_using="hash",
        postgresql_where=text("batch_id IS NULL AND key IS NOT NULL"),
    ),
    Index("dead_letters_published", "published_at", postgresql_where=text("published_at IS NOT NULL")),
    postgresql_with=_VACUUMED_OFTEN,
)

positions = Table(
    "positions",
    metadata,
    Column("topic", Text, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("next_offset", BigInteger, nullable=False, comment="everything before it is applied (or, out, known)"),
    Column("last_offset", BigInteger, comment="the last record applied; with its time and checksum it proves the log"),
    Column("last_timestamp", BigInteger, comment="milliseconds since 1970"),
    Column("last_checksum", BigInteger, comment="crc32 of key and value"),
    Column(
        "taken",
        JSON,
        nullable=False,
        server_default=text("'{}'"),
        comment="source partition -> highest original offset taken by forwarding",
    ),
    Column("first_offset", BigInteger, comment="where reading began; null: before this was noted"),
    PrimaryKeyConstraint("topic", "partition"),
    postgresql_with={"fillfactor": "50"},
)

summaries = Table(
    "summaries",
    metadata,
    Column("batch_id", _Id, nullable=False),
    Column("revision", Integer, nullable=False, comment="the one to summarize, or summarized"),
    Column("state", Text, nullable=False),
    Column("requested_at", _Time, nullable=False, comment="append time of the record that asked for it"),
    Column("requested_offset", BigInteger, nullable=False, comment="its offset"),
    Column("attempts", Integer, nullable=False, server_default="0", comment="failed ones"),
    Column("retry_at", _Time, comment="when the next attempt is due; a wall clock's time"),
    Column("problem", Text, comment="why the last attempt failed"),
    Column("summary", JSON, comment="the newest one there is, as published"),
    PrimaryKeyConstraint("batch_id"),
    CheckConstraint("state IN ('pending', 'ready', 'failed')", name="state_known"),
    CheckConstraint("state <> 'ready' OR summary IS NOT NULL", name="ready_is_there"),
    Index("summaries_pending", "requested_at", "batch_id", postgresql_where=text("state = 'pending'")),
    postgresql_with=_VACUUMED_OFTEN,
)

# Batches that a replay which began in the midst of the log has not seen from their beginning.
incomplete_history = Table(
    "incomplete_history",
    metadata,
    Column("batch_id", _Id, nullable=False),
    PrimaryKeyConstraint("batch_id"),
)

logs = Table(
    "logs",
    metadata,
    Column("topic", Text, nullable=False),
    Column("partition_count", Integer, nullable=False, comment="as of the first start: it fixes every batch's home"),
    PrimaryKeyConstraint("topic"),
    CheckConstraint("partition_count > 0", name="partition_count_positive"),
)

# What follows belongs to the HTTP API. It is no state of the stream: its times are a wall clock's.

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", Text, nullable=False),
    Column("name", Text, nullable=False, comment="whose it is, for people"),
    Column("role", Text, nullable=False),
    Column("hash", LargeBinary, nullable=False, comment="sha256 of the key, which is random and stored nowhere"),
    Column("created_at", _Time, nullable=False, server_default=text("now()")),
    Column("revoked_at", _Time),
    PrimaryKeyConstraint("key_id"),
    CheckConstraint("role IN ('viewer', 'operator', 'admin')", name="role_known"),
    Index("api_keys_by_hash", "hash", unique=True),
)

api_sessions = Table(
    "api_sessions",
    metadata,
    Column("hash", LargeBinary, nullable=False, comment="sha256 of the cookie"),
    Column("key_id", Text, nullable=False),
    Column("expires_at", _Time, nullable=False),
    PrimaryKeyConstraint("hash"),
    Index("api_sessions_by_end", "expires_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, Identity(always=True), nullable=False),
    Column("at", _Time, nullable=False, server_default=text("now()")),
    Column("caller", Text, nullable=False, comment="the key's name; anonymous where authentication is off"),
    Column("key_id", Text),
    Column("action", Text, nullable=False),
    Column("batch_id", _Id),
    Column("items", Integer, comment="how many items it concerned, as far as known"),
    Column("partition", Integer, comment="where on rollcall.events its last record is"),
    Column("record_offset", BigInteger, comment="null: no record was acknowledged"),
    PrimaryKeyConstraint("seq"),
    Index("audit_by_batch", "batch_id", "seq", postgresql_where=text("batch_id IS NOT NULL")),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("caller", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("request_hash", LargeBinary, nullable=False, comment="sha256 of what was asked"),
    Column("created_at", _Time, nullable=False, server_default=text("now()")),
    Column("claimed_at", _Time, comment="somebody is at it; null: nobody any more"),
    Column("status", Integer, comment="of the answer; null: there is none yet"),
    Column("location", Text),
    Column("body", JSON),
    Column("sending", Boolean, nullable=False, server_default=text("false"), comment="a try came so far as to send"),
    PrimaryKeyConstraint("caller", "key"),
    Index("idempotency_keys_by_age", "created_at"),
)

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
       partition, decided_offset, policy, reopened_at, reason, error, summary_state, pruned_at
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
"""What most people ask of a batch; counts by the formulas of ``store.rows.Batch``, the summary of errors, once the
total is known, by that of ``handlers.completion``."""
