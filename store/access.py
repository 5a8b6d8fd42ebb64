"""Statements of the HTTP API's own tables: keys, sessions, what was done by whom, and answers to be repeated."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Result, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from store.rows import OutboxRow
from store.tables import api_keys, api_sessions, audit, idempotency_keys, outbox

KEEP_ANSWERS = timedelta(hours=24)
"""How long an Idempotency-Key is remembered."""
CLAIM_ENDS_AFTER = timedelta(seconds=60)
"""When whoever works on a request under an Idempotency-Key must have died."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as it is listed; the key itself is nowhere."""

    key_id: str
    name: str
    role: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, when, to which batch, to how many items; where the record is that says so."""

    seq: int
    at: datetime
    caller: str
    key_id: str | None
    action: str
    batch_id: str | None
    items: int | None
    partition: int | None
    offset: int | None


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a request under an Idempotency-Key; ``status`` is None where it has no answer yet.

    ``mine``: it is for this caller to work on. ``may_be_sent``: somebody before has come so far as to send. ``since``:
    when the key was first used.
    """

    mine: bool
    may_be_sent: bool
    same_request: bool
    since: datetime
    status: int | None
    location: str | None
    body: Any


_KEY = (api_keys.c.key_id, api_keys.c.name, api_keys.c.role, api_keys.c.created_at, api_keys.c.revoked_at)


async def create_key(connection: AsyncConnection, key_id: str, name: str, role: str, digest: bytes) -> None:
    """Remember a new key by its hash."""
    await connection.execute(insert(api_keys).values(key_id=key_id, name=name, role=role, hash=digest))


async def keys(connection: AsyncConnection) -> list[ApiKey]:
    """All keys, also revoked ones, oldest first."""
    found = await connection.execute(select(*_KEY).order_by(api_keys.c.created_at, api_keys.c.key_id))
    return [ApiKey(*row) for row in found]


async def revoke_key(connection: AsyncConnection, key_id: str) -> bool:
    """Let a key and its sessions be refused from now on; False where there is no such key, or it was revoked."""
    key = api_keys.c
    revoked = await connection.execute(
        update(api_keys).where(key.key_id == key_id, key.revoked_at.is_(None)).values(revoked_at=func.now())
    )
    await connection.execute(delete(api_sessions).where(api_sessions.c.key_id == key_id))
    return bool(revoked.rowcount)


async def key_of(connection: AsyncConnection, digest: bytes) -> ApiKey | None:
    """The key with this hash, unless it is revoked."""
    key = api_keys.c
    found = await connection.execute(select(*_KEY).where(key.hash == digest, key.revoked_at.is_(None)))
    row = found.one_or_none()
    return None if row is None else ApiKey(*row)


async def start_session(connection: AsyncConnection, digest: bytes, key_id: str, lifetime: timedelta) -> None:
    """Remember a session by its cookie's hash, and forget those that have ended."""
    await connection.execute(delete(api_sessions).where(api_sessions.c.expires_at < func.now()))
    await connection.execute(insert(api_sessions).values(hash=digest, key_id=key_id, expires_at=func.now() + lifetime))


async def end_session(connection: AsyncConnection, digest: bytes) -> None:
    """Forget a session."""
    await connection.execute(delete(api_sessions).where(api_sessions.c.hash == digest))


async def session_key(connection: AsyncConnection, digest: bytes) -> ApiKey | None:
    """The key behind a session that has not ended, unless the key is revoked."""
    session, key = api_sessions.c, api_keys.c
    found = await connection.execute(
        select(*_KEY)
        .join(api_sessions, session.key_id == key.key_id)
        .where(session.hash == digest, session.expires_at > func.now(), key.revoked_at.is_(None))
    )
    row = found.one_or_none()
    return None if row is None else ApiKey(*row)


async def record_action(
    connection: AsyncConnection,
    *,
    caller: str,
    key_id: str | None,
    action: str,
    batch_id: str | None,
    items: int | None,
) -> int:
    """Write down that somebody is about to do something; returns the entry's number."""
    entry = insert(audit).values(caller=caller, key_id=key_id, action=action, batch_id=batch_id, items=items)
    return int((await connection.execute(entry.returning(audit.c.seq))).scalar_one())


async def record_place(connection: AsyncConnection, seq: int, partition: int, offset: int) -> None:
    """Write down where the record of an action is."""
    await connection.execute(update(audit).where(audit.c.seq == seq).values(partition=partition, record_offset=offset))


async def actions(
    connection: AsyncConnection, *, batch_id: str | None = None, before: int | None = None, limit: int = 100
) -> Sequence[AuditEntry]:
    """What was done, newest first, optionally of one batch and before an entry."""
    entry = audit.c
    query = select(audit)
    if batch_id is not None:
        query = query.where(entry.batch_id == batch_id)
    if before is not None:
        query = query.where(entry.seq < before)
    found = await connection.execute(query.order_by(entry.seq.desc()).limit(limit))
    return [
        AuditEntry(
            row.seq,
            row.at,
            row.caller,
            row.key_id,
            row.action,
            row.batch_id,
            row.items,
            row.partition,
            row.record_offset,
        )
        for row in found
    ]


async def claim(connection: AsyncConnection, caller: str, key: str, request_hash: bytes) -> Claim:
    """Take a request under an Idempotency-Key upon oneself, or see what became of it.

    One statement's row lock decides between two that come at once. Forgets what is older than ``KEEP_ANSWERS``.
    """
    known = idempotency_keys.c
    await connection.execute(delete(idempotency_keys).where(known.created_at < func.now() - KEEP_ANSWERS))
    abandoned = or_(known.claimed_at.is_(None), known.claimed_at < func.now() - CLAIM_ENDS_AFTER)
    claimed: Result[Any] = await connection.execute(
        insert(idempotency_keys)
        .values(caller=caller, key=key, request_hash=request_hash, claimed_at=func.now())
        .on_conflict_do_update(
            index_elements=[known.caller, known.key],
            set_={"claimed_at": func.now()},
            where=(known.status.is_(None)) & abandoned & (known.request_hash == request_hash),
        )
        .returning(known.sending, known.created_at)
    )
    mine = claimed.one_or_none()
    if mine is not None:
        return Claim(True, mine.sending, True, mine.created_at, None, None, None)
    found = await connection.execute(select(idempotency_keys).where(known.caller == caller, known.key == key))
    row = found.one()
    same = row.request_hash == request_hash
    return Claim(False, row.sending, same, row.created_at, row.status, row.location, row.body)


async def mark_sending(connection: AsyncConnection, caller: str, key: str) -> None:
    """Write down that a request under an Idempotency-Key has come so far as to send."""
    known = idempotency_keys.c
    await connection.execute(
        update(idempotency_keys).where(known.caller == caller, known.key == key).values(sending=True)
    )


async def keep_answer(
    connection: AsyncConnection, caller: str, key: str, status: int, location: str | None, body: Any
) -> None:
    """Remember the answer to a request under an Idempotency-Key."""
    known = idempotency_keys.c
    await connection.execute(
        update(idempotency_keys)
        .where(known.caller == caller, known.key == key)
        .values(status=status, location=location, body=json.loads(json.dumps(body)))
    )


async def release(connection: AsyncConnection, caller: str, key: str, *, forget: bool) -> None:
    """Give up a request: the next one under its key works on it.

    ``forget``: as if there had been none, unless something may have been sent.
    """
    known = idempotency_keys.c
    this = (known.caller == caller, known.key == key, known.status.is_(None))
    if forget:
        await connection.execute(delete(idempotency_keys).where(*this, known.sending.is_(False)))
    await connection.execute(update(idempotency_keys).where(*this).values(claimed_at=None))


async def ask(connection: AsyncConnection, event: OutboxRow) -> None:
    """Put a request to the upstream services into the outbox, once under its id."""
    row = {**event._asdict(), "headers": json.loads(event.headers)}
    await connection.execute(insert(outbox).values(row).on_conflict_do_nothing())
