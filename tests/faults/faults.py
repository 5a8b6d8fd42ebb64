"""The faults: each does its harm to a running round and returns when the harm is over."""

from __future__ import annotations

from functools import partial

from store import failpoints
from tests.faults import kafka, postgres, processes, records
from tests.faults.round import Fault

FAULTS = [
    Fault("none", "none", records.nothing),
    Fault("kill-worker", "processes", partial(processes.kill_role, role="worker")),
    Fault("kill-relay", "processes", partial(processes.kill_role, role="relay")),
    Fault("kill-supervisor", "processes", processes.kill_supervisor),
    Fault("terminate", "shutdown", processes.terminate, separate=True),
    Fault("terminate-twice", "shutdown", processes.terminate_twice, proxied=True),
    Fault("terminate-silent", "shutdown", processes.terminate_silent, proxied=True),
    Fault("stop-worker", "zombies", processes.stop_worker),
    Fault("stop-worker-with-records", "zombies", processes.stop_worker_with_records, separate=True),
    Fault("stop-relay", "zombies", processes.stop_relay),
    Fault("stop-relay-in-transaction", "zombies", processes.stop_relay_in_transaction, separate=True),
    Fault(
        "failpoints-worker", "failpoints", partial(processes.failpoint, names=failpoints.WORKER, times=1), separate=True
    ),
    Fault(
        "failpoints-relay", "failpoints", partial(processes.failpoint, names=failpoints.RELAY, times=1), separate=True
    ),
    Fault("postgres-kill", "postgres-restarts", postgres.kill_postmaster),
    Fault("postgres-immediate", "postgres-restarts", postgres.immediate_restart),
    Fault("postgres-fast", "postgres-restarts", postgres.fast_restart),
    Fault("postgres-away", "postgres-restarts", postgres.away),
    Fault("postgres-away-a-minute", "bounds", postgres.away_a_minute, only_long=True),
    Fault("postgres-outrun", "bounds", postgres.outrun, proxied=True, only_long=True, pace=2.0),
    Fault("postgres-slow", "postgres-network", postgres.slow, proxied=True),
    Fault(
        "postgres-slow-throughout",
        "bounds",
        postgres.slow_throughout,
        proxied=True,
        only_long=True,
        results=10_000,
        patience_s=1_500.0,
    ),
    Fault("postgres-cut", "postgres-network", postgres.cut, proxied=True),
    Fault("postgres-black-hole", "postgres-network", postgres.black_hole, proxied=True),
    Fault("postgres-dead-connections", "postgres-network", postgres.dead_connections, proxied=True),
    Fault("postgres-deadlocks", "postgres-errors", postgres.deadlocks),
    Fault("postgres-serialization", "postgres-errors", postgres.serialization_errors),
    Fault("postgres-terminated", "postgres-errors", postgres.sessions_terminated),
    Fault("postgres-full", "postgres-full", postgres.disk_full, own=True),
    Fault("kafka-kill", "kafka-restarts", kafka.kill_kafka),
    Fault("kafka-restart", "kafka-restarts", kafka.restart_kafka),
    Fault("kafka-away", "kafka-restarts", kafka.away),
    Fault("kafka-slow", "kafka-network", kafka.slow, proxied=True),
    Fault("kafka-cut", "kafka-network", kafka.cut, proxied=True),
    Fault("kafka-black-hole", "kafka-network", kafka.black_hole, proxied=True),
    Fault("kafka-late", "kafka-network", kafka.late, proxied=True),
    Fault("kafka-foreign-transaction", "kafka-transactions", kafka.foreign_transaction),
    Fault("kafka-id-expired", "kafka-transactions", kafka.id_expired, own=True, prepare=kafka.with_expiring_ids),
    Fault(
        "kafka-coordinator-moved",
        "kafka-coordinators",
        kafka.move_coordinators,
        clustered=True,
        only_long=True,
        pace=0.5,
    ),
    Fault("rebalance-storm", "rebalances", processes.rebalance_storm),
    Fault("poison-flood", "records", records.poison_flood, pace=0.3),
    Fault("oversize", "records", records.nothing, prepare=records.with_oversize),
    Fault("refused-dead-letter", "records", records.nothing, own=True, prepare=records.with_refused_dead_letters),
    Fault("refused-event", "records", records.nothing, own=True, prepare=records.with_refused_events),
]
"""`none` shows that the checker is content where nothing happens; it also catches bugs that need no fault."""

AT_ONE_FAILPOINT = [
    Fault(f"failpoint-{name}", "one-failpoint", partial(processes.failpoint, names=(name,), times=3), separate=True)
    for name in (*failpoints.WORKER, *failpoints.RELAY)
]
"""Played only where they are named: five rounds of all failpoints kill at each five times."""
