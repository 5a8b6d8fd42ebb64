"""Harm to the processes of the product: killed, stopped, ended at failpoints, joined and left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from aiokafka.errors import KafkaError

from rollcall.children import Child
from rollcall.settings import ENV_PREFIX
from store import failpoints
from streams.relay import TRANSACTION_TIMEOUT_S
from tests.faults.proxy import Proxy
from tests.faults.round import WORKERS, Round, during, feed, send_signal, stopped, until
from tests.faults.stage import LEADER, PARTITIONS

AT_ONCE_S = 2.0
"""The machine may be busy; draining, in vain, would take several times as long."""
FAILPOINT_TIMEOUT_S = 60.0
RELAY_SESSION_TIMEOUT_S = 15.0
SESSION_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 15.0
LONG_STOP_TIMEOUT_S = 40.0
A_DEATH_S = 15.0
"""About how long it takes a process to come up and to die at its failpoint."""
KILLED_TIMEOUT_S = 10.0
SUPERVISED = ("worker", "relay", "clock", "api")
STORM_EVERY_S = 3.0
STORM_TIMEOUT_S = 120.0
MAX_ADDED = 4
HELD_SHARE = 0.5
"""Of the workers that a storm adds at least so many must have been given partitions: who never joins is no storm."""
END_SESSIONS = f"""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name IN ('rollcall relay events', 'rollcall relay dead-letters') OR pid IN (SELECT pid FROM {LEADER})
"""
"""Of the relay that leads, and publishes; who waits for the lead has no others yet."""


async def kill_role(each: Round, role: str) -> None:
    """Three times one that works: whoever took the place of the one before has got as far as that."""
    for _ in range(3):
        await asyncio.sleep(each.some(0.1, 1.5))
        victim = await _one_at_work(each, role)
        send_signal(victim, signal.SIGKILL)
        await asyncio.to_thread(victim.wait, KILLED_TIMEOUT_S)


async def kill_supervisor(each: Round) -> None:
    """Twice, and all it started with it; the second time once all of that works again."""
    for _ in range(2):
        await _all_at_work(each)
        await asyncio.sleep(each.some(0.1, 1.0))
        supervisor = each.product.supervisor
        assert supervisor is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        await supervisor.wait()
        await each.product.start(WORKERS)


async def _one_at_work(each: Round, role: str) -> psutil.Process:
    return each.random.choice(await until(lambda: each.product.at_work(role), f"a {role} at work"))


async def _all_at_work(each: Round) -> None:
    async def are() -> bool:
        workers, relays = await each.product.at_work("worker"), await each.product.at_work("relay")
        return len(workers) == WORKERS and len(relays) == 1

    await until(are, "all workers and the relay at work")


async def terminate(each: Round) -> None:
    """SIGTERM in the midst of it: a role drains and ends in time."""
    for name in ("worker-0", "relay", "worker-1"):
        await asyncio.sleep(each.some(0.1, 1.5))
        begun = time.monotonic()
        code = await each.product.roles[name].stop(30)
        took_s = time.monotonic() - begun
        each.notes.append(f"{name} ended in {took_s:.1f} s")
        if code or took_s > STOP_TIMEOUT_S:
            each.problems.append(f"{name} ended with {code} in {took_s:.1f} s")
        await each.product.start_usual(name)


async def terminate_twice(each: Round) -> None:
    """What PostgreSQL does not answer cannot be drained; a second SIGTERM does not wait for that."""
    async with during(feed(each)):  # so that there is something to drain
        await asyncio.sleep(each.some(0.5, 1.0))
        each.stage.postgres_proxy.black_hole()
        await asyncio.sleep(each.some(0.5, 1.0))
        for role in ("worker", "relay"):
            at_work = each.product.processes(role)
            if not at_work:
                each.problems.append(f"{role}: there was none to end")
            for found in at_work:
                send_signal(found, signal.SIGTERM)
                await asyncio.sleep(each.some(0.3, 1.0))
                if not _is_alive(found.pid):
                    each.problems.append(f"{role}: the first SIGTERM had ended it already")
                    continue
                begun = time.monotonic()
                send_signal(found, signal.SIGTERM)
                try:
                    await asyncio.to_thread(found.wait, AT_ONCE_S)
                except psutil.TimeoutExpired:
                    each.problems.append(f"{role}: not ended by a second SIGTERM within {AT_ONCE_S:g} s")
                each.notes.append(f"{role} ended {time.monotonic() - begun:.2f} s after a second SIGTERM")
    each.stage.postgres_proxy.heal()


async def terminate_silent(each: Round) -> None:
    """One SIGTERM while PostgreSQL says nothing, and one while Kafka does, in the order that the seed gives."""
    both = [("PostgreSQL", each.stage.postgres_proxy), ("Kafka", each.stage.kafka_proxy)]

    async def all_listen() -> bool:
        pids = [process.pid for role in SUPERVISED for process in each.product.processes(role)]
        return len(pids) == WORKERS + len(SUPERVISED) - 1 and all(map(_listening_ports, pids))

    for name, proxy in each.random.sample(both, 2):
        # The group may still have those ended just now for its members: the new ones may not be up, nor heed a signal.
        await until(all_listen, "all processes are up")
        await each.product.ready(WORKERS)
        await _terminate_amid_silence(each, name, proxy)


async def _terminate_amid_silence(each: Round, name: str, proxy: Proxy) -> None:
    """All processes end in time, and leave nothing behind.

    While they are asked again and again whether they are ready, as orchestrators do.
    """
    supervisor = each.product.supervisor
    assert supervisor is not None
    ended: dict[int, float] = {}
    async with during(feed(each)):  # so that there is something to drain
        await asyncio.sleep(each.some(0.5, 1.0))
        proxy.black_hole()
        await asyncio.sleep(each.some(0.2, 3.0))
        roles = {
            process.pid: f"{role} ({process.pid})" for role in SUPERVISED for process in each.product.processes(role)
        }
        async with during(*(_keep_probing(port) for pid in roles for port in _listening_ports(pid))):
            await asyncio.sleep(each.some(0.5, 1.5))
            begun = time.monotonic()
            supervisor.send_signal(signal.SIGTERM)
            while len(ended) < len(roles) and time.monotonic() - begun < LONG_STOP_TIMEOUT_S:
                ended |= {pid: time.monotonic() - begun for pid in roles if pid not in ended and not _is_alive(pid)}
                await asyncio.sleep(0.02)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(supervisor.wait(), LONG_STOP_TIMEOUT_S)
            took_s = time.monotonic() - begun
    slowest = ", ".join(f"{role} {ended.get(pid, took_s):.1f} s" for pid, role in roles.items())
    each.notes.append(f"{name} silent, all ended in {took_s:.1f} s: {slowest}")
    if took_s > STOP_TIMEOUT_S or supervisor.returncode:
        each.problems.append(f"SIGTERM with {name} silent took {took_s:.1f} s, code {supervisor.returncode}: {slowest}")
    await supervisor.kill()
    proxy.heal()
    each.problems += [f"left behind: {what}" for what in await each.product.left_behind()]
    await each.product.start(WORKERS)


def _listening_ports(pid: int) -> list[int]:
    try:
        connections = psutil.Process(pid).net_connections("tcp4")
    except psutil.Error:
        return []
    return [each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN]


async def _keep_probing(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                await reader.read(1024)
            finally:
                writer.close()
        await asyncio.sleep(0.1)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def stop_worker(each: Round) -> None:
    """Stopped past its session wherever it is, until the others hold all partitions."""
    zombie = await _one_at_work(each, "worker")
    begun = time.monotonic()
    with stopped(zombie):
        await _others_hold_all(each, zombie)
        each.notes.append(f"stopped for {time.monotonic() - begun:.1f} s, its partitions are held by others")


async def stop_worker_with_records(each: Round) -> None:
    """Stopped with records that it has read, until the others have applied these, too.

    Its session in PostgreSQL lives on, no transaction of it is open, and what it does first is to apply the records.
    """
    async with during(feed(each)):
        zombie, log = await _to_stop_at(each, "worker-0", f"read.after:{each.random.randint(3, 8)}")
        await _is_stopped(zombie)
        begun = time.monotonic()
        with stopped(zombie):
            await _others_hold_all(each, zombie)
            await each.product.caught_up(await each.product.ends(), each.patience_s)
            each.notes.append(f"stopped for {time.monotonic() - begun:.1f} s, the others have applied what it had read")
        each.over.set()
        await _says(each, log, b"lost a race")


async def _to_stop_at(
    each: Round, name: str, failpoint: str, env: Mapping[str, str] | None = None
) -> tuple[psutil.Process, Path]:
    """One in place of the worker or relay of this name that will stop there, and where it logs, alone."""
    await each.product.roles[name].kill()
    log = each.stage.directory / f"{each.prefix}.zombie.log"
    child = await each.product.start_usual(name, {failpoints.VARIABLE: f"{failpoint}:stop", **(env or {})}, log)
    return psutil.Process(child.pid), log


async def _is_stopped(zombie: psutil.Process) -> None:
    async def is_it() -> bool:
        return zombie.status() == psutil.STATUS_STOPPED

    await until(is_it, "a process that has stopped at its failpoint")


async def _says(each: Round, log: Path, wanted: bytes) -> None:
    """The round is wrong unless what was stopped finds that others have taken its place."""
    try:
        await until(lambda: _has_said(log, wanted), "")
    except AssertionError:
        each.problems.append(f"what was stopped did not say {wanted.decode()!r} when it went on")


async def _has_said(log: Path, wanted: bytes) -> bool:
    return wanted in await asyncio.to_thread(log.read_bytes)


async def _others_hold_all(each: Round, zombie: psutil.Process) -> None:
    client_id = _client_id(zombie)
    await asyncio.sleep(SESSION_TIMEOUT_S + each.some(1.5, 4))

    async def do_they() -> bool:
        held = await each.product.held()
        others = {number for other, numbers in held.items() if other != client_id for number in numbers}
        return len(others) == PARTITIONS

    await until(do_they, "the others hold what the stopped worker held")


def _client_id(worker: psutil.Process) -> str:
    command = worker.cmdline()
    return f"rollcall-worker-{command[command.index('--slot') + 1]}"


async def stop_relay(each: Round) -> None:
    """The leader, stopped past its session in PostgreSQL until another one that waited has published something."""
    zombie = await _one_at_work(each, "relay")
    await each.product.start_role("relay-2", "relay")
    async with during(feed(each)):
        await until(lambda: _relays_wait(each), "another relay that waits for the lead")
        begun = time.monotonic()
        with stopped(zombie):
            await asyncio.sleep(RELAY_SESSION_TIMEOUT_S)

            async def is_replaced() -> bool:
                return any(other != zombie for other in await each.product.at_work("relay"))

            await until(is_replaced, "another relay that leads")
            written = await each.product.written()
            await until(lambda: each.product.publishes_behind(written), "another relay that publishes")
            each.notes.append(f"stopped for {time.monotonic() - begun:.1f} s, another relay leads and publishes")
            await asyncio.sleep(each.some(0, 1.5))


async def stop_relay_in_transaction(each: Round) -> None:
    """Stopped with events in a transaction of Kafka's, in front of its commit, until another relay has published them.

    What it does first is to commit. Its epoch is an old one by then, and nothing else forbids it: its sessions in
    PostgreSQL are ended from outside, so that the other one leads while the broker would still let it commit, and it
    does not hear of that (PostgreSQL is silent to it) before it has tried, and tried anew.
    """
    proxy, through_proxy = each.stage.postgres_proxy, {f"{ENV_PREFIX}DATABASE_URL": each.product.proxied_database_url}
    each.running.paused.set()  # nothing to publish until both are up: the broker gives them 10 s from there
    await each.product.settled(each.patience_s)
    failpoint = f"relay.commit.before:{each.random.randint(1, 4)}"
    zombie, log = await _to_stop_at(each, "relay", failpoint, through_proxy)
    await until(lambda: _has_said(log, b"leading"), "a relay that leads")
    await each.product.start_role("relay-2", "relay")
    await until(lambda: _relays_wait(each), "another relay that waits for the lead")
    if zombie.status() == psutil.STATUS_STOPPED:
        each.problems.append("it had something to publish before the other one was up")
    each.running.paused.clear()
    async with during(feed(each)):
        await _is_stopped(zombie)
        begun = time.monotonic()
        with stopped(zombie):
            proxy.stall()
            async with each.product.connection() as connection:
                await connection.execute(END_SESSIONS)
            written = await each.product.written()
            await until(lambda: each.product.publishes_behind(written), "another relay that publishes")
            stopped_s = time.monotonic() - begun
        each.notes.append(f"stopped for {stopped_s:.1f} s, another relay publishes")
        if stopped_s > TRANSACTION_TIMEOUT_S:
            each.problems.append("the broker had ended its transaction by itself")
        each.over.set()
        await _says(each, log, b"ProducerFenced")
        proxy.heal()


async def _relays_wait(each: Round) -> bool:
    async with each.product.connection() as connection:
        relays = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rollcall relay leader'"
        return bool(await connection.fetchval(relays) > 1)


async def failpoint(each: Round, names: tuple[str, ...], times: int) -> None:
    """Start a process that will kill itself there, in place of the one that runs; so often for each name."""
    order = list(names)
    each.random.shuffle(order)
    each.running.last(A_DEATH_S * len(names) * times)
    async with during(feed(each)):
        for name in order:
            for _ in range(times):
                await _die_at(each, name)
    for child_name in ("worker-0", "relay"):
        if each.product.roles[child_name].returncode is not None:
            await each.product.start_usual(child_name)


async def _die_at(each: Round, name: str) -> None:
    child_name = "worker-0" if name in failpoints.WORKER else "relay"
    for other in {"worker-0", "relay"} - {child_name}:
        if each.product.roles[other].returncode is not None:
            await each.product.start_usual(other)
    await each.product.roles[child_name].kill()
    count = 1 if name.startswith(("relay.start", "kafka_commit", "read_back")) else each.random.randint(1, 4)
    child = await each.product.start_usual(child_name, {failpoints.VARIABLE: f"{name}:{count}"})
    try:
        code = await asyncio.wait_for(child.wait(), FAILPOINT_TIMEOUT_S)
        if code != -signal.SIGKILL:
            each.problems.append(f"{name}: ended with {code}")
    except TimeoutError:
        each.problems.append(f"{name}:{count} was not reached in {FAILPOINT_TIMEOUT_S:g} s")


async def rebalance_storm(each: Round) -> None:
    """Each 3 s one worker is added, or one of the added is ended, whatever the group is doing; then all those left."""
    storm = _Storm(each)
    before = await each.product.applied()
    async with during(feed(each), storm.watch()):
        await storm.blow(4 if each.short else 12)
    each.notes += [storm.told(), f"{await each.product.applied() - before} records applied meanwhile"]


class _Storm:
    """Workers that come and go, and what partitions each was given."""

    def __init__(self, each: Round) -> None:
        self._each = each
        self._there: dict[str, Child] = {}
        self._ending: list[asyncio.Task[int]] = []
        self._held: dict[str, int] = {}
        self._added = 0

    async def blow(self, times: int) -> None:
        """So many times, and on from there until enough of the newcomers have held partitions."""
        begun = time.monotonic()
        number = 0
        while number < times or (self._too_few and time.monotonic() < begun + STORM_TIMEOUT_S):
            await self._add_or_end()
            number += 1
            await asyncio.sleep(max(0.0, begun + number * STORM_EVERY_S - time.monotonic()))
        for slot in list(self._there):
            self._end(slot, signal.SIGKILL)
        await asyncio.gather(*self._ending)
        if self._too_few:
            self._each.problems.append(f"of {self._added} workers added only {len(self._held)} were given partitions")

    @property
    def _too_few(self) -> bool:
        return len(self._held) < HELD_SHARE * self._added

    async def watch(self) -> None:
        """Until cancelled, keep note of how many partitions each newcomer was given at most."""
        while True:
            with contextlib.suppress(KafkaError, OSError):
                for client_id, partitions in (await self._each.product.held()).items():
                    if "-storm-" in client_id and partitions:
                        self._held[client_id] = max(self._held.get(client_id, 0), len(partitions))
            await asyncio.sleep(0.5)

    def told(self) -> str:
        held = ", ".join(f"{name.removeprefix('rollcall-worker-')} {count}" for name, count in self._held.items())
        return f"{self._added} workers added and ended, which held partitions: {held or 'none'}"

    async def _add_or_end(self) -> None:
        """Ended are those that have held partitions: who never joins, since it takes its time to, disturbs nobody."""
        random, full = self._each.random, len(self._there) == MAX_ADDED
        in_turn = [slot for slot in self._there if f"rollcall-worker-{slot}" in self._held]
        if in_turn and (full or random.random() < 0.5):
            self._end(random.choice(in_turn), random.choice((signal.SIGTERM, signal.SIGKILL)))
        elif not full:
            slot = f"storm-{self._added}"
            self._added += 1
            self._there[slot] = await self._each.product.start_role(f"worker-{slot}", "worker", "--slot", slot)

    def _end(self, slot: str, signum: signal.Signals) -> None:
        """The next one does not wait for its end."""
        self._ending.append(asyncio.create_task(self._there.pop(slot).stop(STOP_TIMEOUT_S, signum=signum)))
