"""Harm to the processes of the product: killed, stopped, ended at failpoints, joined and left."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil

from store import failpoints
from tests.faults.round import WORKERS, Round, feed, send_signal

AT_ONCE_S = 2.0
"""The machine may be busy; draining, in vain, would take several times as long."""
FAILPOINT_TIMEOUT_S = 60.0
RELAY_SESSION_TIMEOUT_S = 15.0
SESSION_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 15.0


async def kill_role(each: Round, role: str) -> None:
    for _ in range(3):
        await asyncio.sleep(each.some(0.1, 1.5))
        if found := each.product.processes(role):
            send_signal(each.random.choice(found), signal.SIGKILL)


async def kill_supervisor(each: Round) -> None:
    for _ in range(2):
        await asyncio.sleep(each.some(0.1, 1.0))
        supervisor = each.product.supervisor
        assert supervisor is not None
        os.kill(supervisor.pid, signal.SIGKILL)
        await supervisor.wait()
        await each.product.start(WORKERS)
        await each.product.ready(WORKERS)


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
    each.stage.postgres_proxy.black_hole()
    await asyncio.sleep(each.some(0.2, 1.0))
    for role in ("worker", "relay"):
        for found in each.product.processes(role):
            send_signal(found, signal.SIGTERM)
            await asyncio.sleep(each.some(0.3, 1.0))
            begun = time.monotonic()
            send_signal(found, signal.SIGTERM)
            try:
                await asyncio.to_thread(found.wait, AT_ONCE_S)
            except psutil.TimeoutExpired:
                each.problems.append(f"{role}: not ended by a second SIGTERM within {AT_ONCE_S:g} s")
            each.notes.append(f"{role} ended {time.monotonic() - begun:.2f} s after a second SIGTERM")
    each.stage.postgres_proxy.heal()


async def stop_worker(each: Round) -> None:
    zombie = each.random.choice(each.product.processes("worker"))
    send_signal(zombie, signal.SIGSTOP)
    await asyncio.sleep(SESSION_TIMEOUT_S + each.some(1.5, 4))
    send_signal(zombie, signal.SIGCONT)


async def stop_relay(each: Round) -> None:
    """Stopped past its session in PostgreSQL, with another one waiting to lead."""
    zombie = each.random.choice(each.product.processes("relay"))
    await each.product.start_role("relay-2", "relay")
    await asyncio.sleep(each.some(1, 2))
    send_signal(zombie, signal.SIGSTOP)
    await asyncio.sleep(RELAY_SESSION_TIMEOUT_S + each.some(1.5, 3))
    send_signal(zombie, signal.SIGCONT)


async def failpoint(each: Round, names: tuple[str, ...], times: int) -> None:
    """Start a process that will kill itself there, in place of the one that runs; so often for each name."""
    order = list(names)
    each.random.shuffle(order)
    feeding = asyncio.create_task(feed(each))
    try:
        for name in order:
            for _ in range(times):
                await _die_at(each, name)
    finally:
        feeding.cancel()
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
    for number in range(2 if each.short else 5):
        extra = await each.product.start_role(f"worker-storm-{number}", "worker", "--slot", f"storm-{number}")
        await asyncio.sleep(3)
        if each.random.random() < 0.5:
            await extra.stop(15)
        else:
            await extra.kill()
        await asyncio.sleep(each.some(0, 3))
