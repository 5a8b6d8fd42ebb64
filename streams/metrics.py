"""What the streams count for Prometheus. Counted once a micro-batch or round, never once a record.

No label has more values than there are partitions: never a batch id. A group is made when its role first asks for
it, so that no process shows figures of what it does not do.
"""

from collections import Counter as Tally
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from handlers.microbatch import Applied
from handlers.records import Disposition
from schemas.dead_letters import Reason
from schemas.headers import headers_from
from store.rows import OutboxRow

disable_created_metrics()  # type: ignore[no-untyped-call]

# Beside what the fold finds: sent on to its home, become a dead letter, a forward that came twice.
FORWARDED, DEAD, REPEATED_FORWARD = "forwarded", "dead", "repeated_forward"

QUEUES = ("events", "dead-letters")

_SIZES = (1, 10, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000)
_DURATIONS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LATENCIES_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 7_200)

LEADING = Gauge("rollcall_leading", "1 in the process that leads, 0 in one that stands by.", ["role"])
RETRIES = Counter("rollcall_retries_total", "Attempts that failed and were tried again.", ["doing"])


class WorkerMetrics:
    """What a worker counts."""

    def __init__(self) -> None:
        self._records = Counter(
            "rollcall_records_total", "Records read from the log and committed, by what they did.", ["disposition"]
        )
        self._dead_letters = Counter("rollcall_dead_letters_total", "Records that could not be taken.", ["reason"])
        self._sizes = Histogram("rollcall_micro_batch_records", "Records of a micro-batch.", buckets=_SIZES)
        self._seconds = Histogram(
            "rollcall_micro_batch_seconds",
            "From a micro-batch's hand-over to its commit, repeated attempts included.",
            buckets=_DURATIONS_S,
        )
        self._finalizations = Histogram(
            "rollcall_finalization_seconds",
            "From the deciding record's append to the commit that finalized its batch.",
            buckets=_LATENCIES_S,
        )
        self._assigned = Gauge("rollcall_partition_assigned", "1 for each partition this worker reads.", ["partition"])
        self.lost_races = Counter("rollcall_lost_races_total", "Micro-batches given up as another worker had moved on.")
        for disposition in (*Disposition, FORWARDED, DEAD, REPEATED_FORWARD):
            self._records.labels(str(disposition))
        for reason in Reason:
            self._dead_letters.labels(reason.value)

    def note_flushed(self, applied: Applied, *, records: int, forwarded: int, seconds: float) -> None:
        """A micro-batch is committed: so many ``records`` were read, ``forwarded`` ones among them."""
        tally: Tally[str] = Tally({str(key): count for key, count in applied.dispositions.items()})
        tally[FORWARDED] = forwarded
        tally[DEAD] = len(applied.dead_letters)
        # A record forwarded in vain (too large) is a dead letter, too; whatever is left was taken before.
        tally[REPEATED_FORWARD] = max(0, records - tally.total())
        for disposition, count in tally.items():
            self._records.labels(disposition).inc(count)
        for reason, count in Tally(letter.reason for letter in applied.dead_letters).items():
            self._dead_letters.labels(reason).inc(count)
        self._sizes.observe(records)
        self._seconds.observe(seconds)
        for age in _ages(applied.events):
            self._finalizations.observe(age)

    def note_assigned(self, partitions: Iterable[int]) -> None:
        """These partitions are this worker's now, and no others."""
        self._assigned.clear()
        for partition in partitions:
            self._assigned.labels(str(partition)).set(1)


class RelayMetrics:
    """What a relay counts."""

    def __init__(self) -> None:
        self._published = Counter("rollcall_published_records_total", "Records published, by queue.", ["queue"])
        self.quarantined = Counter(
            "rollcall_quarantined_records_total", "Records the broker refused for good, put aside.", ["queue"]
        )
        self._seconds = Histogram(
            "rollcall_relay_round_seconds",
            "A round of the relay that published something, its transaction and its marks.",
            ["queue"],
            buckets=_DURATIONS_S,
        )
        self._publications = Histogram(
            "rollcall_publication_seconds",
            "From the deciding record's append to the broker's acknowledgement of its finalized event.",
            buckets=_LATENCIES_S,
        )
        for queue in QUEUES:
            self._published.labels(queue)
            self.quarantined.labels(queue)

    def note_round(self, queue: str, rows: Sequence[object], *, seconds: float) -> None:
        """A round has published and marked these rows."""
        self._published.labels(queue).inc(len(rows))
        self._seconds.labels(queue).observe(seconds)
        for age in _ages(row for row in rows if isinstance(row, OutboxRow)):
            self._publications.observe(age)


class InstallationMetrics:
    """What is true of the whole installation, whoever looks."""

    def __init__(self) -> None:
        self.observed = Gauge("rollcall_observed_timestamp_seconds", "When these figures were last read.")
        self.lag = Gauge("rollcall_lag_records", "Offsets of a partition behind what is applied of it.", ["partition"])
        self.open_batches = Gauge("rollcall_open_batches", "Batches that are not finalized.", ["state"])
        self.oldest = Gauge(
            "rollcall_oldest_open_batch_age_seconds", "How long the oldest of them is open; 0 where there is none."
        )
        self.outbox = Gauge("rollcall_outbox_records", "Events that wait to be published.", ["topic"])
        self.dead_letters = Gauge("rollcall_unpublished_dead_letters", "Dead letters that wait to be published.")


worker_metrics = cache(WorkerMetrics)
relay_metrics = cache(RelayMetrics)
installation_metrics = cache(InstallationMetrics)


def _ages(events: Iterable[OutboxRow]) -> Iterable[float]:
    """Seconds since the append of each finalized event's deciding record (which is the event's time)."""
    now = datetime.now(UTC)
    for event in events:
        if event.channel == "finalized":
            appended_at = datetime.fromisoformat(headers_from(event.headers)["ce_time"])
            yield max(0.0, (now - appended_at).total_seconds())
