"""A promotion leaves everybody the rights they had, as docs/security.md gives them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.engine import make_url

from migrations.run import migrate
from rollcall.settings import Settings
from schemas.topics import Topics
from store.connection import Connection
from tests.harness import commands
from tests.harness.histories import Message
from tests.harness.product import Product
from tests.harness.tables import finalized_events
from tests.harness.topics import create_topic, produce

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).parents[2]

# Who owns what, and who may do what with it.
RIGHTS = """
SELECT relname, pg_get_userbyid(relowner) AS owner, NULL AS of_column, grantee, privilege_type, is_grantable
FROM pg_class, aclexplode(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)))
WHERE relnamespace = to_regnamespace($1) AND relkind IN ('r', 'v', 'S')
UNION ALL
SELECT relname, NULL, attname, grantee, privilege_type, is_grantable
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid, aclexplode(attacl)
WHERE relnamespace = to_regnamespace($1)
UNION ALL
SELECT '', pg_get_userbyid(nspowner), NULL, grantee, privilege_type, is_grantable
FROM pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner))) WHERE nspname = $1
"""


def documented(settings: Settings) -> tuple[str, str]:
    """What docs/security.md says a superuser does, and what the owner does then, with this test's names."""
    [block] = re.findall(r"```sql\n(.*?)```", (ROOT / "docs/security.md").read_text(), re.DOTALL)
    schema, database = settings.database_schema, make_url(settings.database_url).database
    block = re.sub(r"\brollcall_(\w+)", rf"{schema}_\1", block)
    block = re.sub(r"\bDATABASE rollcall\b", f"DATABASE {database}", block)
    block = re.sub(r"\bSCHEMA rollcall\b", f"SCHEMA {schema}", block)
    block = re.sub(r"\brollcall\.", f"{schema}.", block)
    administers, owns = re.split(r"^-- as .*$", block, flags=re.MULTILINE)
    return administers, owns


def used_by(settings: Settings, role: str) -> Settings:
    url = make_url(settings.database_url).set(username=f"{settings.database_schema}_{role}", password="…")
    return settings.model_copy(update={"database_url": url.render_as_string(hide_password=False)})


async def rights(connection: Connection, schema: str) -> set[tuple[Any, ...]]:
    return {tuple(row) for row in await connection.fetch(RIGHTS, schema)}


def batch(batch_id: str) -> list[Message]:
    events: list[dict[str, Any]] = [
        {"type": "batch.opened", "batch_id": batch_id, "total_items": 1},
        {"batch_id": batch_id, "item_id": "1", "status": "succeeded"},
    ]
    return [Message(batch_id.encode(), json.dumps(event).encode(), batch_id) for event in events]


async def test_everybody_may_do_what_they_might_before_whoever_made_the_shadow(settings: Settings) -> None:
    topics, schema = Topics(settings.topic_prefix), settings.database_schema
    await create_topic(settings.bootstrap_servers, topics.events, partitions=1)
    owner, app = used_by(settings, "owner"), used_by(settings, "app")
    administers, owns = documented(settings)
    connection = await settings.database().connect("test")
    product = Product(app)
    try:
        await connection.execute(administers)
        await migrate(owner.database_url, schema)
        owning = await owner.database().connect("test")
        await owning.execute(owns)
        # Besides: what grants can be of, and rights that what the owner makes later has by itself.
        await owning.execute(f"""
            GRANT SELECT (id, channel) ON {schema}.outbox TO {schema}_read;
            GRANT SELECT ON {schema}.late_results TO {schema}_app WITH GRANT OPTION;
            GRANT USAGE ON SEQUENCE {schema}.outbox_seq_seq TO {schema}_read;
            ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {schema}_read;
        """)
        await owning.close()
        before = await rights(connection, schema)
        await product.start_relay()
        await product.start_worker()
        await product.assigned(1)
        for number, promoting in enumerate((owner, settings)):  # the second time a superuser
            await produce(settings.bootstrap_servers, topics.events, batch(f"before-{number}"))
            await product.settled()
            shadow = f"{schema}_{number}"
            await commands.replay_and_promote(promoting, shadow)
            assert await rights(connection, schema) == before
            await produce(settings.bootstrap_servers, topics.events, batch(f"behind-{number}"))
            await product.settled()
        assert all(child.returncode is None for child in product.children.values()), "nobody had to be started again"
        done = await commands.rollcall(owner, "migrate")
        assert done.exit_code == 0, done.stderr
        await connection.execute(f"SET ROLE {schema}_read")
        assert await connection.fetchval(f"SELECT count(*) FROM {schema}.batch_status") == 4
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch(f"SELECT FROM {schema}.dead_letters")
        await connection.execute("RESET ROLE")
    finally:
        await product.stop()
        await connection.close()
    assert len(await finalized_events(settings)) == 4
